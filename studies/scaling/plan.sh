#!/bin/sh
# Plans the study, or goes on in its plan: sh studies/scaling/plan.sh STORE FOLDER [more options]
store=$1 out=$2
shift 2
exec retoken scaling plan --data "$store" --out "$out" --jobs 2 \
    --flops counted --budgets 1.1e12 2e12 3.6e12 6.3e12 1.12e13 \
    --tokens-per-param 35 --spacing 1.5 --sizes-per-budget 5 --max-epochs 1.75 \
    --seeds 0 --optimum-seeds 0 1 2 --etas 30 50 80 --rhos 1/3 2/3 1 \
    --mixture-budgets 2e12 6.3e12 --mixture-seeds 0 1 2 \
    --control-budgets 2e12 6.3e12 --control-seeds 0 1 2 \
    --lr 8e-3 --lr-width 64 "$@"
