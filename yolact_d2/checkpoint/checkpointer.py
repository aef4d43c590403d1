"""Load checkpoints into models, and check that they fit."""

import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from .fit import check_fit, without_old_classes
from .names import translate
from .reading import CheckpointMismatch, model_tensors, read_checkpoint


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` that never executes code from a file, for models of any kind.

    It reads ``.safetensors`` files too.
    """

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """See :meth:`DetectionCheckpointer.load`.

        Raises:
            CheckpointMismatch: naming the file, if it is damaged or does not fit the model. In the
                latter case the tensors that do fit have been loaded.
        """
        try:
            return super().load(path, *args, **kwargs)
        except CheckpointMismatch as error:
            if path in str(error):
                raise
            raise CheckpointMismatch(f"{path}: {error}") from error
        finally:
            # Detectron2 leaves it set after an error, and then refuses to load anything else.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pyth"):
            raise CheckpointMismatch(f"{filename} is a file of pycls, which is not read")
        if filename.endswith(".pkl"):
            checkpoint = _as_detectron2_checkpoint(read_checkpoint(filename))
        else:
            checkpoint = super()._load_file(filename)
        model_tensors(checkpoint, filename)
        return checkpoint

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)


class YOLACTCheckpointer(SafeCheckpointer):
    """Checkpointer of this project's models, which says why a checkpoint does not fit.

    :meth:`load` takes whole checkpoints only, of this project or of the authors' code.
    :meth:`warm_start` takes whatever training can start from.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        new_classes: bool = False,
        **checkpointables: Any,
    ):
        """
        Args:
            new_classes: :meth:`warm_start` accepts another number of classes.
            model, save_dir, save_to_disk, checkpointables: see :class:`DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.new_classes = new_classes
        self._is_warm_start = False

    def warm_start(self, path: str) -> dict[str, Any]:
        """Load the weights that training starts from.

        Besides what :meth:`load` takes, this may be a backbone (torchvision's, the authors', or
        Detectron2's), or a checkpoint in which some tensors outside the backbone have another
        shape, for instance because of another MODEL.YOLACT.PROTONET.NUM_PROTOTYPES. These keep
        their initial values and are logged.

        Raises:
            CheckpointMismatch: naming the file, if it is damaged, another kind of model, or has
                another number of classes without `new_classes`.
        """
        self._is_warm_start = True
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._is_warm_start = False

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._convert_ndarray_to_tensor(checkpoint["model"])
        loaded = checkpoint["model"]
        if not checkpoint.get("matching_heuristics"):
            # Here, so that Detectron2 compares shapes by this project's names.
            checkpoint["model"] = translate(loaded)
            if self._is_warm_start and self.new_classes:
                checkpoint["model"] = without_old_classes(
                    checkpoint["model"], self.model.state_dict()
                )
        incompatible = super()._load_model(checkpoint)
        check_fit(
            loaded,
            self.model.state_dict(),
            incompatible,
            warm_start=self._is_warm_start,
            new_classes=self.new_classes,
        )
        return incompatible


def _as_detectron2_checkpoint(data: dict[str, Any]) -> dict[str, Any]:
    """The content of a ``.pkl`` file as :meth:`DetectionCheckpointer._load_file` returns it."""
    if "model" in data and "__author__" in data:
        return data
    # Caffe2's: detectors have "blobs", backbones have not.
    blobs = data.get("blobs", data)
    model = {key: value for key, value in blobs.items() if not str(key).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def check_weights_exist(weights: str) -> None:
    """Check that MODEL.WEIGHTS, if it is a local path, names a file.

    Raises:
        ValueError: if it does not.
    """
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise ValueError(f"MODEL.WEIGHTS: there is no file {weights!r}")
