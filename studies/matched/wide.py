"""Is the wider backbone behind because of its rate? The smaller one of 64x3, one seed, at three rates.

    python studies/matched/wide.py --stores STORES --work WORK

Writes wide.csv. Rate 1 is the rule's, as in `run.py train`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from run import MEASURED, Trial, config_of

from retoken.study.ledger import Ledger
from retoken.train.loop import train

RATES = (1.0, 0.5, 0.25)
TRIAL = Trial(preset="llama-64x3", size=1, variant="wide", rate=1.0, seed=1)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    ledger = Ledger(Path(__file__).parent / "wide.csv", list(asdict(TRIAL)), MEASURED)
    for rate in RATES:
        trial = replace(TRIAL, rate=rate)
        if ledger.has(asdict(trial)):
            continue
        config = config_of(trial, given.stores, given.work)
        result = train(replace(config, lr=rate * config.lr, table_lr_mult=1.0))
        ledger.add(asdict(trial), result)
        print(f"{rate:g}: {result.val_loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
