"""The Hugging Face Trainer with the few overrides that this recipe exists for.

    trainer = CrowdTrainer(config, args, model, processor, train, validation)
    trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))

Batches of one orientation, normalised on the device; streaming COCO metrics; strict restore of every tensor; two
weight shards, the frozen one hard-linked; a stop on the first non-finite loss.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DetrForObjectDetection, DetrImageProcessor, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from recipe.config import Config
from recipe.data.batches import OrientationBatchSampler, collate, fits_shared_memory, normalise, undisturbed
from recipe.data.dataset import CrowdDataset
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.checkpoint import SHARDS, load_weights, save_detector
from recipe.report.card import write_card
from recipe.training.backlog import PUSHED
from recipe.training.run import read_record

if TYPE_CHECKING:
    from recipe.training.push import RunRepo

logger = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """The loss is nan or infinite; the message names the folder that replays the step."""


class CrowdTrainer(Trainer):
    """`transformers.Trainer` for DETR on crowds. Everything not overridden here is the library's."""

    def __init__(
        self,
        config: Config,
        args: TrainingArguments,
        model: DetrForObjectDetection,
        processor: DetrImageProcessor,
        train: CrowdDataset | None,
        validation: CrowdDataset,
    ) -> None:
        self.recipe = config
        self.evaluation: DetectionMetrics | None = None  # the last evaluation, for the report
        self.values: dict[str, float] = {}  # and its numbers
        self.evaluated_step = -1
        self.shown: dict[int, dict[str, np.ndarray]] = {}  # image id -> its detections in the last evaluation
        self._loaders: dict[str, DataLoader] = {}
        self._losses: Any = 0.0  # [layers, 3] summed over the batches since the last log, of which there are
        self._losses_count = 0
        self._rng: dict[str, Tensor] = {}
        self.repo: RunRepo | None = None  # where every checkpoint is pushed
        self.backbone_shard = Path(args.output_dir) / SHARDS[True]  # written once, hard-linked into every checkpoint
        self._limit = args.save_total_limit
        args._n_gpu = min(args.n_gpu, 1)  # else Trainer wraps the model in DataParallel, which scatters labels wrongly
        # Image id -> its place in the validation dataset.
        self.rows = {image_id: row for row, image_id in enumerate(validation.annotations.image_id.tolist())}
        self._shown_ids = set(list(self.rows)[: config.shown_images])
        super().__init__(
            model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=processor
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean per batch: Trainer divides by the accumulation

    # ---- data: whole batches of one orientation, uint8 until they are on the device ----

    def get_train_dataloader(self) -> DataLoader:
        return self._loader("train", self.train_dataset, self._train_batch_size, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return self._loader("validation", eval_dataset or self.eval_dataset, self.args.eval_batch_size, shuffle=False)

    def _loader(self, name: str, dataset: CrowdDataset, batch_size: int, *, shuffle: bool) -> DataLoader:
        if name not in self._loaders:
            workers = self.args.dataloader_num_workers
            size = batch_size * 3 * self.recipe.shortest_edge * self.recipe.longest_edge
            if workers and not fits_shared_memory(size, workers):
                logger.info("%s: /dev/shm is small, so batches come through pipes, with twice the copying", name)
            loader = DataLoader(
                dataset,
                batch_sampler=OrientationBatchSampler(
                    dataset, batch_size, shuffle=shuffle, seed=self.args.seed, processes=self.args.world_size
                ),
                collate_fn=collate,
                worker_init_fn=undisturbed,
                num_workers=workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                # A loader draws its base seed from the global generator, but a persistent one only once: a resumed run
                # would draw one more than a run that was never stopped, and its dropout would differ from then on.
                generator=torch.Generator().manual_seed(self.args.seed),
            )
            self._loaders[name] = self.accelerator.prepare(loader)
        return self._loaders[name]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return normalise(super()._prepare_inputs(inputs))

    # ---- training: the loss per decoder layer, and a stop where it is not finite ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._rng = random_state()
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except NonFiniteLoss:
            rank = f"-rank-{self.args.process_index}" if self.args.process_index else ""
            folder = Path(self.args.output_dir) / "nonfinite" / f"step-{self.state.global_step}{rank}"
            save_detector(self.accelerator.unwrap_model(self.model), folder, self.backbone_shard)  # also beyond rank 0
            torch.save({"inputs": inputs, "rng": self._rng}, folder / "batch.pt")
            images = [int(label["image_id"]) for label in inputs["labels"]]
            raise NonFiniteLoss(
                f"the loss is not finite at step {self.state.global_step}, images {images}. The batch, the weights "
                f"and the random state are in {folder}; replay the step with `recipe replay {folder}`"
            ) from None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            if not torch.isfinite(loss):  # no extra wait for the GPU: the matcher has just had one
                raise NonFiniteLoss
            names = [*(f"_{layer}" for layer in range(self.model.config.decoder_layers - 1)), ""]
            parts = [torch.stack([outputs.loss_dict[kind + name] for kind in LOSSES]) for name in names]
            self._losses = self._losses + torch.stack(parts).detach()
            self._losses_count += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._losses_count:
            means = self.accelerator.reduce(self._losses / self._losses_count, reduction="mean")
            config = self.model.config
            weights = means.new_tensor([1, config.bbox_loss_coefficient, config.giou_loss_coefficient])
            logs |= {f"loss_layer_{layer}": value for layer, value in enumerate((means @ weights).tolist(), 1)}
            logs |= dict(zip(LOSSES, means[-1].tolist(), strict=True))
            self._losses, self._losses_count = 0.0, 0
        super().log(logs, start_time)

    # ---- evaluation: nothing is kept but the detections ----

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self.evaluation = DetectionMetrics(num_queries=self.model.config.num_queries)
        self.shown = {}
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if self.args.world_size > 1:
            states: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(states, (self.evaluation.state(), self.shown))
            self.evaluation = DetectionMetrics(num_queries=self.model.config.num_queries)
            self.evaluation.merge([state for state, _ in states])
            self.shown = {key: value for _, shown in states for key, value in shown.items()}
        prefix = kwargs.get("metric_key_prefix", "eval")
        self.values, self.evaluated_step = self.evaluation.compute(), self.state.global_step
        output.metrics.update({f"{prefix}_{key}": value for key, value in self.values.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Feed the batch's detections to the metrics; hand only the loss back, so that memory does not grow."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        sizes = torch.stack([label["orig_size"] for label in inputs["labels"]])  # [batch, 2] height, width
        # A threshold below 0 keeps all queries: the metrics look at every score.
        found = self.processing_class.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
        boxes, scores, labels = (
            torch.stack([image[key] for image in found]).cpu().numpy() for key in ("boxes", "scores", "labels")
        )
        assert self.evaluation is not None
        for row, label in enumerate(inputs["labels"]):
            image_id = int(label["image_id"])
            targets = self.eval_dataset.truth.targets(self.rows[image_id])
            detections = {"pred_xyxy": boxes[row], "scores": scores[row], "labels": labels[row]}
            self.evaluation.update(image_id, **detections, **targets)
            if image_id in self._shown_ids:
                self.shown[image_id] = detections
        return loss.detach().mean(), None, None

    # ---- checkpoints: plain files, restored whole or not at all ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / PUSHED).unlink(missing_ok=True)  # what is on the Hub is no longer what lies here
        save_detector(self.accelerator.unwrap_model(self.model), folder, self.backbone_shard)
        self.processing_class.save_pretrained(folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing to do: `recipe.training.push` opens the repo before anything is loaded."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do when a model is saved: the finished run is pushed with its report."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The stock push runs in the background and nobody asks for its error: two 500s lost an epoch in silence.
        if self.repo is not None:
            if self.evaluation is not None:
                weights = f"epoch {self.state.epoch:.2f}, step {self.state.global_step}"
                if self.evaluated_step != self.state.global_step:
                    weights += f"; all numbers are those of step {self.evaluated_step}"
                record = read_record(Path(self.args.output_dir)) | {"weights": weights}
                write_card(Path(checkpoint_folder), self.values, self.evaluation.details(), record)
            left = self.repo.push(Path(self.args.output_dir))
            if self._limit:  # rotation comes next: it may take neither the best nor what the Hub has missed
                self.args.save_total_limit = max(self._limit, len(left) + 1)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The stock loader reads raw keys with strict=False and only warns about what stayed at its initial value.
        load_weights(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        logger.info("best model: %s (%.4f)", self.state.best_model_checkpoint, self.state.best_metric)
        load_weights(self.accelerator.unwrap_model(self.model), Path(self.state.best_model_checkpoint))


LOSSES = ("loss_ce", "loss_bbox", "loss_giou")


def random_state() -> dict[str, Tensor]:
    """Of PyTorch's generators: a training step draws from no other."""
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}
