"""The Hugging Face Trainer with the few overrides that this recipe exists for: data, loss, evaluation, strict restore.

    trainer = CrowdTrainer(args, model, processor, train, validation, DetectionMetrics(), callbacks)
    trainer.train(resume_from_checkpoint=last_checkpoint(output_dir))

It knows no Hub, no card and no plot: those are callbacks. Everything not overridden here is the library's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from recipe.arguments import Arguments
from recipe.data.annotations import Annotations
from recipe.data.batches import SizeBatchSampler, collate, normalise, worker_init
from recipe.data.dataset import CrowdDataset
from recipe.evaluation.metrics import DetectionMetrics
from recipe.model.checkpoint import BACKBONE_FILE, load_weights, save_detector
from recipe.model.detector import Detector
from recipe.model.loss import LOSSES, count_items, loss_weights

logger = logging.getLogger(__name__)

# A loader's worker that gives no batch for so long hangs: eight images take it a tenth of a second.
BATCH_SECONDS = 600


class Diverged(RuntimeError):
    """A loss, an evaluation or a weight is nan or infinite; the message says where."""


class CrowdTrainer(Trainer):
    """`transformers.Trainer` for detectors on crowds.

    Args:
        metrics: where the detections of each evaluation go; callbacks that draw or write read them there.
        part: images of the validation split on which the epochs are compared; None for all.
    """

    # The loss is normalised by the boxes of the whole optimizer step: Trainer must not divide by the accumulation.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        args: Arguments,
        model: Detector,
        processor: Any,
        train: CrowdDataset | None,
        validation: CrowdDataset,
        metrics: DetectionMetrics,
        callbacks: Sequence[TrainerCallback] = (),
        part: CrowdDataset | None = None,
    ) -> None:
        self.metrics, self._part = metrics, part
        self.backbone_file = Path(args.output_dir) / BACKBONE_FILE  # written once, hard-linked into every checkpoint
        self._losses: Any = 0.0  # [layers, 3] summed over the optimizer steps since the last log, of which there are
        self._steps = 0
        self._loaders: dict[CrowdDataset, DataLoader] = {}
        self._targets: Callable[[int], dict[str, Any]]  # image_id -> what the metrics need of its labels
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=processor,
            callbacks=[*callbacks],
        )
        self.model_accepts_loss_kwargs = True  # `num_items_in_batch` goes to the model

    # ---- data: batches of images of one size, uint8 until they are on the device ----

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, self.args.train_batch_size, shuffle=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return self._loader(eval_dataset or self.eval_dataset, self.args.eval_batch_size, shuffle=False)

    def _loader(self, dataset: CrowdDataset, batch_size: int, *, shuffle: bool) -> DataLoader:
        if dataset not in self._loaders:
            workers = self.args.dataloader_num_workers
            sampler = SizeBatchSampler(
                dataset, batch_size, shuffle=shuffle, seed=self.args.seed, processes=self.args.world_size
            )
            loader = DataLoader(
                dataset,
                batch_sampler=sampler,
                collate_fn=collate,
                worker_init_fn=worker_init,
                num_workers=workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                timeout=BATCH_SECONDS if workers else 0,
                # A loader draws its base seed from the global generator, but a persistent one only once: a resumed run
                # would draw one more than a run that was never stopped, and its dropout would differ from then on.
                generator=torch.Generator().manual_seed(self.args.seed),
            )
            self._loaders[dataset] = self.accelerator.prepare(loader)
        return self._loaders[dataset]

    # ---- training: one normaliser for the whole step, and a stop where the loss is not finite ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one optimizer step, and the boxes and images that all processes have in them, float [2]."""
        self._steps += 1
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        items = count_items(batches, self.model.config.num_queries).to(device, non_blocking=True)
        if self.args.world_size > 1:
            items = self.accelerator.reduce(items, reduction="sum")
        return batches, items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        random_state = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except Diverged:
            folder = Path(self.args.output_dir) / "nonfinite" / f"step-{self.state.global_step}"
            if self.args.process_index:
                folder = folder.with_name(f"{folder.name}-rank-{self.args.process_index}")
            save_detector(self.accelerator.unwrap_model(self.model), folder, self.backbone_file)
            self.processing_class.save_pretrained(folder)
            saved = {"inputs": inputs, "items": num_items_in_batch, "random_state": random_state}
            torch.save(saved, folder / "batch.pt")
            images = [int(label["image_id"]) for label in inputs["labels"]]
            raise Diverged(
                f"the loss is not finite at step {self.state.global_step}, images {images}. The batch, the weights "
                f"and the random state are in {folder}; replay the step with `recipe replay {folder}`"
            ) from None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        processor = self.processing_class
        inputs = normalise(inputs, processor.image_mean, processor.image_std)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            if not torch.isfinite(loss):  # no extra wait for the GPU: the matcher has just had one
                raise Diverged
            self._losses = self._losses + torch.stack([outputs.loss_dict[name] for name in LOSSES], 1).detach()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Beside the loss: that of each decoder layer, and the parts of the last one, per optimizer step."""
        if "loss" in logs and self._steps:
            means = self._losses / self._steps
            if self.args.world_size > 1:
                means = self.accelerator.reduce(means, reduction="sum")
            weights = means.new_tensor([*loss_weights(self.model.config).values()])
            logs |= {f"loss_layer_{layer}": value for layer, value in enumerate((means @ weights).tolist(), 1)}
            logs |= dict(zip(LOSSES, means[-1].tolist(), strict=True))
            self._losses, self._steps = 0.0, 0
        super().log(logs, start_time)

    # ---- evaluation: nothing is kept but the detections ----

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """With a part of the split: the epochs are compared on it, and the last one is also evaluated on all."""
        if not (self.is_in_train and eval_dataset is None and self._part):
            return super().evaluate(eval_dataset, *args, **kwargs)
        compared = super().evaluate(self._part, *args, **kwargs)
        if self.state.global_step >= self.state.max_steps:
            super().evaluate(self.eval_dataset, metric_key_prefix="eval_all")
        return compared

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        notes: Annotations = dataloader.dataset.annotations_with_crowds  # type: ignore[attr-defined]
        rows = {image_id: row for row, image_id in enumerate(notes.image_id.tolist())}
        self._targets = lambda image_id: notes.targets(rows[image_id])
        self.metrics.reset()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if self.args.world_size > 1:
            states: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(states, self.metrics.state())
            self.metrics.merge(states)
        self.metrics.step = self.state.global_step
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics.update({f"{prefix}_{key}": value for key, value in self.metrics.compute().items()})
        if self.is_in_train and not np.isfinite(output.metrics[f"{prefix}_loss"]):
            raise Diverged(f"the evaluation at step {self.state.global_step} is not finite")
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Feed the batch's detections to the metrics; hand only the loss back, so that memory does not grow."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        sizes = torch.stack([label["orig_size"] for label in inputs["labels"]])  # [batch, 2] height, width
        ids = torch.cat([label["image_id"] for label in inputs["labels"]]).tolist()
        # A threshold below 0 keeps all queries: the metrics look at every score.
        detections = self.processing_class.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
        boxes, scores, labels = (
            torch.stack([image[key] for image in detections]).cpu().numpy() for key in ("boxes", "scores", "labels")
        )
        for place, image_id in enumerate(ids):
            found = {"pred_xyxy": boxes[place], "scores": scores[place], "labels": labels[place]}
            self.metrics.update(image_id, **found, **self._targets(image_id))
        return loss.detach().mean(), None, None

    # ---- checkpoints: plain files, restored whole or not at all ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Two safetensors shards under plain names: the stock writer's are restored in part, with a warning."""
        model = self.accelerator.unwrap_model(self.model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not torch.stack([parameter.isfinite().all() for parameter in trained]).all():
            raise Diverged(f"a weight is not finite at step {self.state.global_step}")
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_detector(model, folder, self.backbone_file)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # The stock loader reads raw keys with strict=False and only warns about what stayed at its initial value.
        load_weights(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        logger.info("best model: %s (%.4f)", self.state.best_model_checkpoint, self.state.best_metric)
        load_weights(self.accelerator.unwrap_model(self.model), Path(self.state.best_model_checkpoint))
