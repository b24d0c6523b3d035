"""From a comparison to its runs: one recipe, told apart by variant and seed alone."""

from typing import Any

from retoken import presets
from retoken.compare.config import OWN_OPTIONS, CompareConfig
from retoken.compare.folder import CompareFolder, RunKey
from retoken.compare.machine import cores
from retoken.data.tokens import TokenStore
from retoken.train.config import BASELINE, TrainConfig
from retoken.train.folder import fingerprint

CHECKPOINTS = 4
EVALUATIONS = 10
"""Checkpoints and evaluations of a run where neither the preset nor the caller says."""


def keys(config: CompareConfig) -> list[RunKey]:
    """The runs, seed by seed: what is there when a job stops early is comparable."""
    return [RunKey(name, seed) for seed in config.seeds for name in config.variants]


def plan(config: CompareConfig) -> dict[RunKey, TrainConfig]:
    """The configuration of every run.

    Raises:
        ConfigError: The preset is unknown, or an option of the recipe is not accepted.
    """
    folder = CompareFolder(config.out)
    options = _recipe(config)
    threads = config.threads or max(1, cores() // config.jobs)
    return {
        key: TrainConfig(
            out=folder.run(key),
            data=config.data,
            preset=config.backbone(key.name),
            variant=modulator.type if (modulator := config.modulator(key.name)) else BASELINE,
            modulator=modulator,
            seed=key.seed,
            device=config.device,
            threads=threads,
            **options,
        )
        for key in keys(config)
    }


def _recipe(config: CompareConfig) -> dict[str, Any]:
    """The preset's options under the caller's, with what only a comparison decides."""
    options = presets.get(config.preset).recipe.under(config.recipe)
    if options.get("steps"):
        options["tokens"] = options["steps"] * options["batch_size"] * options["context_length"]
    steps = options["tokens"] // max(1, options["batch_size"] * options["context_length"])
    # The preset's interval is of the preset's length; another length keeps the number of evaluations.
    own_length = bool({"tokens", "steps", "batch_size", "context_length"} & set(config.recipe))
    if "eval_every" not in config.recipe and (own_length or not options.get("eval_every")):
        options["eval_every"] = max(1, steps // EVALUATIONS)
    options.setdefault("log_every", max(1, min(10, steps // 50)))
    options.setdefault("checkpoint_every", max(1, steps // CHECKPOINTS))
    return options


def recipe(config: CompareConfig, store: TokenStore) -> dict[str, Any]:
    """What every run shares, as ``results.json`` carries it.

    Raises:
        ConfigError: A variant does not fit the backbone.
        DataError: The store has no text to train on.
    """
    first = next(iter(plan(config).values())).to_dict()
    shared = {
        name: value for name, value in first.items() if name not in (*OWN_OPTIONS, "type", "format_version")
    }
    # Neither changes a result, so both may differ when a comparison goes on.
    shared = {name: value for name, value in shared.items() if name not in ("keep", "checkpoint_every")}
    manifest = store.manifest
    split = manifest.splits
    return {
        "preset": config.preset,
        "train": shared,
        "modulators": {
            name: found.to_dict() for name in config.variants if (found := config.modulator(name))
        },
        "data": {
            "corpus": manifest.preparation.get("corpus", ""),
            "notes": list(manifest.notes),
            "fingerprint": fingerprint(manifest),
            "vocab_size": manifest.vocab_size,
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "train_tokens": split["train"].tokens,
            "train_documents": split["train"].documents,
            "val_tokens": split["val"].tokens,
            "val_documents": split["val"].documents,
        },
    }


def counts(config: CompareConfig, store: TokenStore) -> dict[str, dict[str, float]]:
    """Sizes and FLOPs of every variant, counted from the configuration.

    Raises:
        ConfigError: A modulator does not fit the backbone's depth.
    """
    options = {
        "vocab_size": store.manifest.vocab_size,
        "context_length": next(iter(plan(config).values())).context_length,
    }
    return {
        name: presets.count(presets.get(config.backbone(name)), config.modulator(name), **options).to_dict()
        for name in config.variants
    }
