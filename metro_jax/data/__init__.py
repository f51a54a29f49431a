# SPDX-License-Identifier: Apache-2.0
"""From text to batches: vocabulary, token cache, masks, one pure function.

Text is tokenised once into a memory-mapped cache; a batch is then a pure
function of (seed, step), so a resumed run finds its place instead of replaying
it. Nothing here needs TensorFlow or seqio unless a registry name asks for it.
"""

from metro_jax.data.corpus import corpus as corpus
from metro_jax.data.masking import max_predictions as max_predictions
from metro_jax.data.sources import Docstrings as Docstrings
from metro_jax.data.sources import Registered as Registered
from metro_jax.data.sources import resolve as resolve
from metro_jax.data.span_corruption import SpanCorruption as SpanCorruption
from metro_jax.data.span_corruption import end_id as end_id
from metro_jax.data.span_corruption import row_length as row_length
from metro_jax.data.span_corruption import target_length as target_length
from metro_jax.data.term_counts import TermCounts as TermCounts
from metro_jax.data.text_files import TextFiles as TextFiles
from metro_jax.data.token_cache import TokenCache as TokenCache
from metro_jax.data.token_dataset import TokenDataset as TokenDataset
from metro_jax.data.vocabularies import Vocabulary as Vocabulary
