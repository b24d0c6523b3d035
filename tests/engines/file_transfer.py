"""A weight transfer engine of vLLM's interface that reads what a trainer would send from a file, in parts."""

from dataclasses import dataclass

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class Init(WeightTransferInitInfo):
    """Nothing to say."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """Every second tensor of a file, from the first or the second on."""

    file: str = ""
    part: int = 0


class FileTransfer(WeightTransferEngine):
    """Loads by name, as the engines that receive checkpoints do."""

    init_info_cls = Init
    update_info_cls = Update

    def init_transfer_engine(self, init_info):
        """Nothing to do."""

    def start_weight_update(self):
        """Before the first part."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info):
        """One part."""
        names = list(state := load_file(update_info.file))
        self.model.load_weights((name, state[name]) for name in names[update_info.part :: 2])

    def finish_weight_update(self):
        """After the last part."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self):
        """Nothing to do."""


def register():
    """Make it known, once."""
    if "file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("file", FileTransfer)
