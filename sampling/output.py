"""What `step` of our schedulers returns."""

from collections import OrderedDict
from dataclasses import dataclass

from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput


@dataclass
class StepOutput(DDIMSchedulerOutput):
    """diffusers' `prev_sample` and `pred_original_sample`, made in half of the time.

    Its own finds out at every step which fields there are: as much as a pass over a latent image.
    """

    def __post_init__(self) -> None:
        OrderedDict.__setitem__(self, "prev_sample", self.__dict__["prev_sample"])
        OrderedDict.__setitem__(self, "pred_original_sample", self.__dict__["pred_original_sample"])
