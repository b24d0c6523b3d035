#!/bin/sh
# Plans the study, or goes on in its plan: sh studies/scaling/plan.sh STORE FOLDER [more options]
store=$1 out=$2
shift 2
exec retoken scaling plan --data "$store" --out "$out" \
    --budgets 4e11 7e11 1.25e12 2.2e12 4e12 \
    --tokens-per-param 100 --spacing 1.6 --sizes-per-budget 5 --max-epochs 2.1 \
    --seeds 0 1 --etas 30 50 80 --rhos 1/3 2/3 1 --optimum-seeds 0 1 2 \
    --mixture-budgets 7e11 2.2e12 --mixture-seeds 0 1 2 \
    --control-budgets 7e11 2.2e12 --control-seeds 0 \
    --lr 8e-3 --lr-width 64 --jobs 2 "$@"
