# SPDX-License-Identifier: Apache-2.0
"""Models as trainers see them."""

from metro_jax.models.base import Model as Model
from metro_jax.models.prediction import Fill as Fill
from metro_jax.models.pretraining import PretrainingModel as PretrainingModel
