# SPDX-License-Identifier: Apache-2.0
"""Models as trainers see them."""

from metro_jax.models.base import Model as Model
from metro_jax.models.finetuning import FineTuningModel as FineTuningModel
from metro_jax.models.finetuning import with_heads as with_heads
from metro_jax.models.prediction import Fill as Fill
from metro_jax.models.pretraining import PretrainingModel as PretrainingModel
from metro_jax.models.text_task import TextTaskModel as TextTaskModel
from metro_jax.models.text_task import for_text as for_text
from metro_jax.models.text_to_text import TextToText as TextToText
from metro_jax.models.text_to_text_model import (
  TextToTextModel as TextToTextModel,
)
