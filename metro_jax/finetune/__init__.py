# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: task heads on a pretrained main model, and what steadies them.

A `Finetuner` has the embedder and the main model of a `Pretrainer`, under the
same names, and in place of its heads one `Formulation` a task.
"""

from metro_jax.finetune.finetuner import Finetuner as Finetuner
from metro_jax.finetune.formulations import FORMULATIONS as FORMULATIONS
from metro_jax.finetune.formulations import Classification as Classification
from metro_jax.finetune.formulations import Formulation as Formulation
from metro_jax.finetune.formulations import Ranking as Ranking
from metro_jax.finetune.formulations import Regression as Regression
from metro_jax.finetune.formulations import Spans as Spans
from metro_jax.finetune.regularizers import (
  PosteriorDifferential as PosteriorDifferential,
)
