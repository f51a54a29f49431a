# SPDX-License-Identifier: Apache-2.0
"""Downstream tasks: their files, their batches, their scores.

  files --registry--> records --encode--> rows --TaskDataset--> batches
  logits --decode--> predictions --metrics--> scores, submission files

NumPy only; scikit-learn, SciPy and rouge-score are imported when a score is
computed.
"""

from metro_jax.downstream.dataset import TaskDataset as TaskDataset
from metro_jax.downstream.metrics import METRIC_NAMES as METRIC_NAMES
from metro_jax.downstream.own import own_task as own_task
from metro_jax.downstream.plan import best_metric as best_metric
from metro_jax.downstream.plan import eval_datasets as eval_datasets
from metro_jax.downstream.plan import heads as heads
from metro_jax.downstream.plan import period as period
from metro_jax.downstream.plan import test_datasets as test_datasets
from metro_jax.downstream.plan import train_steps as train_steps
from metro_jax.downstream.plan import warmup_steps as warmup_steps
from metro_jax.downstream.registry import TASKS as TASKS
from metro_jax.downstream.registry import resolve as resolve
from metro_jax.downstream.squad_metrics import Answer as Answer
from metro_jax.downstream.t0 import t0_mixture as t0_mixture
from metro_jax.downstream.text import text_task as text_task
from metro_jax.downstream.text_dataset import TextTaskDataset as TextTaskDataset
