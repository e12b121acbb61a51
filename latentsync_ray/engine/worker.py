"""The loop of a warm Ray Train worker: orders come from the engine, results go to the store and the engine."""

from __future__ import annotations

import io
import math
import os
import socket
import time
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import torch
from PIL import Image

from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import recipe_from_plain, stage_config
from latentsync_ray.core.record import Partial, Timings, Trained
from latentsync_ray.core.segment import Metrics, Segment
from latentsync_ray.core.training import Training, TrainingSetup, load_training
from latentsync_ray.engine.determinism import make_deterministic, refused_operation
from latentsync_ray.engine.environment import environment
from latentsync_ray.engine.messages import (
    Fault,
    GroupSetup,
    LoopConfig,
    OrderFailure,
    Rank,
    SegmentOutcome,
    WorkerOrder,
    WorkerSetup,
)
from latentsync_ray.engine.speed import reset_peak_memory, segment_speed
from latentsync_ray.store import DamagedEntryError, StorageError, Store, weights_sha256
from latentsync_ray.store.patience import Patience

_TELL_SECONDS = 2.0
"""How often a process tells the engine that it moves."""


def train_loop(config: LoopConfig) -> None:
    """Runs on every rank of a worker group until the engine has no more orders."""
    setup, group = config["setup"], config["group"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    engine = ray.get_actor(setup.engine)
    load_training(setup.training)  # its libraries load while the driver readies the inputs
    joined = ray.get(engine.join.remote(group)) if rank == 0 else None
    inputs, number = ray.train.collective.broadcast_from_rank_zero(joined)
    patience = Patience(setup.storage_retry_seconds, lambda line: engine.notice.remote(f"{group}: {line}"))
    worker = _Worker(setup, group, rank, world_size, inputs, engine, patience)

    order = ray.get(engine.next_order.remote(group, number))
    while order is not None:
        outcome = None
        try:
            worker.tell_movement()
            if rank == 0:
                worker.begin(order, number)
            outcome = worker.execute(order)
        except _LeftAloneError:
            raise
        except _PreemptedError:
            if rank == 0:
                ray.get(engine.group_preempted.remote(group, number))
            return
        except Exception as error:  # every fault of an order is its result, so that nobody waits for ever
            worker.forget()
            failure = _failure(error, order, worker.own, world_size)
            ray.get(engine.order_failed.remote(group, number, failure))
            if failure.restarting:
                raise
        if outcome is not None:
            following = engine.order_finished.remote(group, number, outcome)
        else:
            following = engine.next_order.remote(group, number + 1)
        number += 1
        order = ray.get(following)


def _failure(error: Exception, order: WorkerOrder, own: Rank, world_size: int) -> OrderFailure:
    """What to tell the engine of an error, and whether this process can go on after it."""
    refused = refused_operation(error)
    explained = refused is not None or isinstance(error, UserError | FloatingPointError | DamagedEntryError)
    message = refused or (str(error) if explained else f"{type(error).__name__}: {error}")
    fault = Fault.DIVERGED if isinstance(error, FloatingPointError) else Fault.ERROR
    return OrderFailure(
        error=" ".join(message.split()),
        fault=Fault.STORAGE if isinstance(error, StorageError) else fault,
        rank=own.number,
        node_id=own.node_id,
        # Other ranks may hang in a collective operation that this one has left. And a process may be broken for good,
        # as after a CUDA error, so that whatever is not the user's or the numbers' fault gets another one.
        restarting=world_size > 1 or not explained,
        explained=explained,
        # torch.distributed raises nothing more special.
        may_be_a_peers=world_size > 1 and not explained and isinstance(error, RuntimeError),
        lost_parent=order.segment.parent if isinstance(error, DamagedEntryError) else None,
    )


class _PreemptedError(Exception):
    """The node of a rank is about to be taken away; what was trained of the segment is stored."""


class _LeftAloneError(Exception):
    """Something that this process lives by was killed, which ends it too; another group gets the order."""


class _Worker:
    """One rank: the training that it keeps warm, and the key of the state in its memory."""

    def __init__(
        self,
        setup: GroupSetup,
        group: str,
        rank: int,
        world_size: int,
        inputs: WorkerSetup,
        engine: Any,
        patience: Patience,
    ):
        self.setup, self.group, self.rank, self.world_size = setup, group, rank, world_size
        self.idle_since, self.publish_seconds = time.perf_counter(), 0.0
        self.training_class = load_training(setup.training)
        self.recipe = recipe_from_plain(self.training_class.recipe_type, inputs.recipe)
        self.store = Store(setup.storage, patience)
        self.store_id = inputs.store_id
        self.environment = environment()
        self.asked_environment = inputs.environment
        self.training: Training[Any] | None = None
        self.seed: int | None = None
        self.held: str | None = None
        self.built: tuple[str, Any] | None = None
        self.start_sha256: str | None = None
        self.raylet = os.getppid()
        self.engine = engine
        self.own = Rank(rank, ray.get_runtime_context().get_node_id(), os.getpid())
        self.told_at = -math.inf

    def forget(self) -> None:
        """After a fault, nothing in memory is trusted."""
        self.training = self.held = self.built = None

    def tell_movement(self) -> None:
        """Tells the engine, every few seconds, that this process does not stand still."""
        if time.monotonic() - self.told_at >= _TELL_SECONDS:
            self.told_at = time.monotonic()
            self.engine.moved.remote(self.group, self.own)

    def begin(self, order: WorkerOrder, number: int) -> None:
        """Notes that order `number` is begun; raises if its controller, the engine or its raylet is gone.

        A worker lives on for a moment when its controller, the engine or the node's raylet is killed.
        """
        try:
            ray.train.get_all_reported_checkpoints()  # the one call of Ray Train's API that goes to the controller
            stands = ray.get(self.engine.order_stands.remote(self.group, number))
        except Exception as error:
            raise _LeftAloneError from error
        if not stands or os.getppid() != self.raylet:
            raise _LeftAloneError
        self.store.log_execution(order.segment.key, self.group)

    def execute(self, order: WorkerOrder) -> SegmentOutcome | None:
        """Trains one segment, validates, and publishes. Returns what to tell the engine; None on ranks but 0."""
        segment = order.segment
        self.store.check_identity(self.store_id)
        if self.asked_environment is not None and self.environment != self.asked_environment:
            raise UserError(
                f"environment: strict needs all nodes alike, node {socket.gethostname()} has {self.environment}, "
                f"another one {dict(self.asked_environment)}; take it out, or set environment=reported"
            )
        started, waited_since = time.perf_counter(), self.idle_since
        training, steps = self._restore(segment, order)
        restored, num_left_off = time.perf_counter(), len(steps)
        reset_peak_memory()

        # Train.
        for global_step in range(segment.start_step + len(steps), segment.end_step):
            steps.append(training.step(global_step, global_step - segment.stage_start_step))
            self.tell_movement()
            # All ranks are told at the same step.
            if self.setup.preemptible and ray.train.get_preemption_info() is not None:
                if self.rank == 0:
                    looked_at: list[Metrics] = [dict(step) for step in steps]
                    self.store.write_partial(segment.key, looked_at, self.start_sha256, training.state())
                raise _PreemptedError
        losses = [dict(step) for step in steps]  # waits for a device that is still at it
        stepped = time.perf_counter()
        self.tell_movement()

        # Validate.
        metrics = training.validate()
        for name in losses[0]:
            metrics[f"train/{name}"] = sum(step[name] for step in losses) / len(losses)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"step {segment.end_step}: {name} is {value}")
        validated = time.perf_counter()

        # Publish: state first, record last.
        self.tell_movement()
        self.held = segment.key
        if self.rank != 0:
            self.idle_since = time.perf_counter()
            return None
        state, preview = training.state(), training.preview()
        picture = io.BytesIO()
        if preview is not None:
            Image.fromarray(preview.numpy()).save(picture, "PNG")
        timings = Timings(
            restore_seconds=restored - started,
            train_seconds=stepped - restored,
            validate_seconds=validated - stepped,
            publish_seconds=self.publish_seconds,
            wait_seconds=started - waited_since,
        )
        speed = segment_speed(training.work(), segment.num_steps - num_left_off, timings.train_seconds)
        self.store.check_identity(self.store_id)
        weights = weights_sha256(state)
        trained = Trained(segment, metrics, losses, self.start_sha256, weights, self.environment, timings, speed)
        record = self.store.publish(trained, state, picture.getvalue() or None, training.validation_terms())
        if self.setup.preemptible:
            self.store.drop_partial(segment.key)  # it is of no use any more
        self.idle_since = time.perf_counter()
        self.publish_seconds = self.idle_since - validated
        return SegmentOutcome(metrics, record.state, timings, self.environment, speed)

    def _restore(self, segment: Segment, order: WorkerOrder) -> tuple[Training[Any], list[Metrics]]:
        """The training, ready for the segment's stage and settings, and the losses of the steps behind it.

        It is at the end of the parent segment, or where another worker had to leave this one.
        """
        config = stage_config(self.recipe, segment.stage, segment.config)
        torch.set_num_threads(config.num_threads)
        if self.training is None or self.seed != segment.seed:
            self.forget()
            self.training, self.seed = self._new_training(segment.seed), segment.seed
        training = self.training
        self.start_sha256 = None  # it goes on with what it has
        if self.held == segment.parent and self.built == (segment.stage, segment.config):
            return training, []
        state_stage = order.parent.stage if order.parent is not None else ""
        partial, state = self._left_off(segment.key)
        if partial is not None:
            state_stage = segment.stage
        elif order.parent is None:
            state = None
        elif self.held == segment.parent:
            state = training.state()
        else:
            state = self.store.read_state(segment.parent, order.parent.sha256)
        self.held = None
        training.build(segment.stage, config, state, state_stage)
        self.built = (segment.stage, segment.config)
        if partial is not None:
            self.start_sha256 = partial.start_weights_sha256
            return training, list(partial.steps)
        if state is not None and self.rank == 0:
            started = training.state()
            self.start_sha256 = weights_sha256({name: started[name] for name in state if name.startswith("model.")})
        return training, []

    def _left_off(self, key: str) -> tuple[Partial, dict[str, torch.Tensor]] | tuple[None, None]:
        """What a worker that had to leave this segment has kept of it, and the state there; the same on all ranks."""
        if not self.setup.preemptible:
            return None, None
        try:
            kept = self.store.read_partial(key) if self.rank == 0 else None
            partial = ray.train.collective.broadcast_from_rank_zero(kept)
            if partial is None:
                return None, None
            return partial, self.store.read_partial_state(key, partial)
        except DamagedEntryError as error:
            self.store.drop_partial(key)
            raise RuntimeError(f"{error}; it will be trained from its beginning") from None

    def _new_training(self, seed: int) -> Training[Any]:
        make_deterministic()
        device = ray.train.torch.get_device()
        training = self.training_class(TrainingSetup(self.recipe, seed, device, self.rank, self.world_size))
        lines = training.rehearse(self.store)
        for line in lines if self.rank == 0 else ():
            ray.get(self.engine.notice.remote(line))
        return training
