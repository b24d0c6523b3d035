"""THE training loop. Every run of the package is this one: `train`, `compare`, the studies, the bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

import retoken
from retoken.checkpoint.files import writing
from retoken.checkpoint.folders import step_of
from retoken.data.tokens import TokenStore
from retoken.optim import Schedule, lr_factor, set_lr
from retoken.parallel import canonical_tables
from retoken.train import peak, setup
from retoken.train.ahead import BatchQueue
from retoken.train.compiled import compile_for
from retoken.train.config import TrainConfig
from retoken.train.evaluate import Evaluation, evaluate
from retoken.train.folder import RunFolder, fingerprint
from retoken.train.furnish import Furnisher
from retoken.train.lost import told_of_lost_processes
from retoken.train.metrics import MetricLog, OnEvent
from retoken.train.probe import probe
from retoken.train.result import TrainResult
from retoken.train.saving import Saving
from retoken.train.signals import StopRequest
from retoken.train.step import Stepper
from retoken.train.world import World, open_world


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything one run holds while it goes; `step` counts the optimizer steps done."""

    config: TrainConfig
    store: TokenStore
    folder: RunFolder
    world: World
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    reader: BatchQueue
    stepper: Stepper
    schedule: Schedule
    log: MetricLog
    tables: str
    saving: Saving
    step: int = 0
    start_memory: int = 0
    adapted: bool = False
    """Whether something that no file describes was added to the model."""


Adapt = Callable[[PreTrainedModel], PreTrainedModel]
"""Changes a model in place before its optimizer is made; must do the same each time that a run goes on."""


def train(config: TrainConfig, *, on_event: OnEvent | None = None, adapt: Adapt | None = None) -> TrainResult:
    """Train one model, or go on with it where its folder holds a part of this very run.

    A finished run is not run again: its result is read back. An interrupted one goes on from its newest
    checkpoint and ends bit-equal to one that was never interrupted.

    Args:
        config: The run.
        on_event: Called in the first process with every line of metrics.jsonl, and with "start",
            "checkpoint" and "end" events; see docs/training.md.
        adapt: For programs that train something of their own by this loop, such as adapters: it may add
            modules and freeze parameters. What it adds is in the checkpoints under its own names; no model
            folder is written, as `from_pretrained` would not know them.

    Raises:
        ConfigError, DataError, AttachError: Something does not fit; nothing was written but config.json.
        TrainingError: A non-finite loss, a full disk, a folder of another run, a process that is gone.
        CheckpointError: The newest checkpoint is broken.
        KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint of the last step was written first.
    """
    with open_world(config.device, config.threads, config.timeout) as world, StopRequest() as stop:
        store, folder = setup.open_store(config), RunFolder(config.out)
        held = folder.held_by(world, config, fingerprint(store.manifest))
        with told_of_lost_processes(world, folder), held:
            if folder.finished:
                return TrainResult.read(folder.result)
            run = prepare(config, store, folder, world, on_event, adapt)
            try:
                go_on(run, stop)
                return finish(run)
            finally:
                run.saving.close()
                run.log.close()


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def go_on(run: Run, stop: StopRequest) -> None:
    """Step after step to the end."""
    config, log, total = run.config, run.log, run.config.total_steps
    log.tell(
        "start", step=run.step, total_steps=total, tokens_per_step=config.tokens_per_step, tables=run.tables
    )
    while run.step < total:
        position = run.reader.state_dict()
        rate = lr_factor(run.schedule, run.step)
        set_lr(run.optimizer, rate)
        windows = run.reader.next_batch()
        upcoming = run.reader.upcoming() if run.stepper.looks_ahead else None
        loss, grad_norm = run.stepper.step(windows, upcoming)
        run.step += 1
        log.add(run.step, loss, grad_norm, position)
        stopping = run.world.any(stop.requested)
        if run.step % config.log_every == 0 or run.step == total:
            log.train_line(run.step, config.lr * rate)
        if run.step < total and _every(config.eval_every, run.step):
            evaluate_now(run)
        if run.step == total or stopping or _every(config.checkpoint_every, run.step):
            save(run)
        tell_saved(run, wait=stopping)
        if stopping:
            raise KeyboardInterrupt(
                f"stopped behind step {run.step} of {total}; {config.out} goes on from there"
            )


def prepare(
    config: TrainConfig,
    store: TokenStore,
    folder: RunFolder,
    world: World,
    on_event: OnEvent | None = None,
    adapt: Adapt | None = None,
) -> Run:
    """Build the run at its start, or as its newest checkpoint left it."""
    peak.reset_peak(world.device)
    start_memory = peak.resident_bytes(world.device)
    saving = Saving(config, folder, world)
    furnisher = Furnisher(config, store, world)
    if saving.found and world.size == 1:
        model = saving.build_model()
    else:  # a process may hold a part of the tables, which only the run's own options tell
        model = setup.build_model(config, store, furnisher.table_for)
    source = furnisher.furnish(model)
    nn.Module.to(model, world.device).train()
    setup.choose_trained(model, config)
    model = adapt(model) if adapt else model
    if config.activation_checkpointing:
        setup.recompute_activations(model)
    if world.leads:
        folder.claim(config, fingerprint(store.manifest))
    counts = setup.count(config, model)
    wrapped = world.wrap(model, config.data_parallel == "fsdp")
    optimizer = setup.build_optimizer_for(model, config, source)
    forward = compile_for(config, wrapped, counts)
    run = Run(
        config=config,
        store=store,
        folder=folder,
        world=world,
        model=model,
        optimizer=optimizer,
        reader=setup.build_reader(config, store, world),
        stepper=Stepper(model, forward, optimizer, config, world, source),
        schedule=config.lr_schedule(),
        log=MetricLog(folder, config, world, counts.flops_per_token, saving.last_good, on_event),
        saving=saving,
        tables=furnisher.said,
        start_memory=start_memory,
        adapted=adapt is not None,
    )
    saving.begin(model, optimizer, canonical_tables(model))
    if saving.found:
        restore(run)
    else:
        run.log.start_anew()
        torch.manual_seed(config.seed + 2 + world.rank)
        look_inside(run)
    return run


def restore(run: Run) -> None:
    """Go on as the newest checkpoint left it."""
    found = run.saving.restore()
    run.step = found.step
    run.reader.load_state_dict(found.state["reader"])
    run.log.restore(found.state["log"], found.step)


def save(run: Run) -> None:
    """Begin a checkpoint of this step; it is written while the next steps are done."""
    with run.log.clock.paused(run.world.device):
        run.saving.save(run.step, {"reader": run.reader.state_dict(), "log": run.log.state()})


def tell_saved(run: Run, *, wait: bool = False) -> None:
    """Say which checkpoints are on the disk by now; wait for those that are not."""
    for path in run.saving.finished(wait=wait):
        run.log.tell("checkpoint", step=step_of(path), path=str(path))


def evaluate_now(run: Run) -> Evaluation:
    """Held-out loss at this step, and a look inside; both become lines."""
    with run.log.clock.paused(run.world.device):
        found = held_out(run)
        values = {"val_loss": found.loss, "val_bits_per_byte": found.bits_per_byte}
        run.log.line("eval", run.step, values)
        look_inside(run)
    return found


def held_out(run: Run) -> Evaluation:
    """The loss on the held-out split, or on its first `eval_tokens`."""
    config = run.config
    batches = setup.eval_batches(config, run.store)
    return evaluate(run.model, batches, run.store.token_bytes(), run.world, config.arithmetic)


def look_inside(run: Run) -> None:
    """Scales, load and residual stream on the first held-out windows, the same at every call."""
    ids = next(iter(setup.eval_batches(run.config, run.store)))[:, :-1].to(run.world.device)
    found = probe(run.model, ids, run.config.arithmetic)
    if run.world.leads:
        run.log.line("modulators", run.step, found)


def finish(run: Run) -> TrainResult:
    """The last evaluation, the trained model, and, last of all, the result."""
    final, folder = evaluate_now(run), run.folder
    tell_saved(run, wait=True)
    result = conclude(run, final)
    if run.world.leads:
        with writing(folder.path):
            final.save(folder.token_loss)
            if not run.adapted:
                run.saving.write_model(run.step, folder.model, run.store)
            result.write(folder.result)
    run.world.wait()
    run.log.tell("end", step=run.step, val_loss=result.val_loss, seconds=result.train_seconds)
    return result


def conclude(run: Run, final: Evaluation) -> TrainResult:
    """What the run came to."""
    config, seconds = run.config, run.log.clock.seconds
    sizes = {
        role: sum(p.numel() for _, p in named) for role, named in retoken.param_groups(run.model).items()
    }
    sizes["tables"] = setup.count(config, run.model).table_params  # this process may hold a part of them
    tokens = run.step * config.tokens_per_step
    return TrainResult(
        name=config.variant,
        seed=config.seed,
        val_loss=final.loss,
        val_bits_per_byte=final.bits_per_byte,
        val_tokens=int(final.count_V.sum().item()),
        steps=run.step,
        tokens=tokens,
        backbone_params=sizes["backbone"],
        table_params=sizes["tables"],
        stored_params=sum(sizes.values()),
        flops_per_token=run.log.flops_per_token,
        train_seconds=seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_bytes=max(run.start_memory, peak.peak_bytes(run.world.device)),
        start_memory_bytes=run.start_memory,
        out=str(config.out),
    )
