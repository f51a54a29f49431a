# SPDX-License-Identifier: Apache-2.0
"""Fine-tuned classifiers: `Electra-` and `BertForSequenceClassification`.

The same encoder with a task layer on [CLS]: ELECTRA's has GELU in the middle,
BERT's, which is its pooler, tanh.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from metro_jax.conversion import bert, electra, rules
from metro_jax.conversion.rules import Rule, Tensors
from metro_jax.errors import UserError
from metro_jax.finetune import Classification, Finetuner
from metro_jax.models import FineTuningModel
from metro_jax.modules import Encoder, TransformerConfig

# What a task is called in a run that has been imported.
_TASK = 'task'


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A kind of classifier as an architecture of `conversion`.

  Attributes:
    MODEL_TYPE: of config.json, which names the encoder, too.
    ARCHITECTURE: the class in transformers.
    activation: of the task layer.
    dense: name of the task layer's first part there.
    output: name of its second part.
    wide: whether its tables must be as wide as the model.
  """

  MODEL_TYPE: str
  ARCHITECTURE: str
  activation: str
  dense: str
  output: str
  wide: bool

  @property
  def NAME(self) -> str:
    """What --format calls it."""
    return f'{self.MODEL_TYPE}_classifier'

  def misfit(self, model: Any) -> str | None:
    """Why a model cannot be such a classifier; None if it can."""
    if not isinstance(model, FineTuningModel):
      return 'it is not fine-tuned'
    tasks = list(model.finetuner.tasks.values())
    if len(tasks) != 1 or not isinstance(tasks[0], Classification):
      return 'it is not fine-tuned on one classification task'
    if tasks[0].activation != self.activation:
      return f"its head's activation is not {self.activation!r}"
    config = model.finetuner.config
    if self.wide and config.table_width != config.embed_dim:
      return 'its table_dim is not its embed_dim'
    return bert.plain_misfit(model.finetuner.main)

  def export(self, model: FineTuningModel, params: Tensors) -> dict[str, Any]:
    """Folders of a model: '' -> (config, tensors)."""
    ((task, kind),) = model.finetuner.tasks.items()
    config = model.finetuner.config
    about = {
      'architectures': [self.ARCHITECTURE],
      'model_type': self.MODEL_TYPE,
      'id2label': {str(i): f'LABEL_{i}' for i in range(kind.classes)},
      'label2id': {f'LABEL_{i}': i for i in range(kind.classes)},
    }
    if not self.wide:
      about['embedding_size'] = config.table_width
    tensors = self._map(config, task).export(params)
    tensors = bert.with_segments(tensors, f'{self.MODEL_TYPE}.embeddings')
    return {'': (about | bert.sizes(config), tensors)}

  def restore(
    self, source: str, config: dict[str, Any], tensors: Tensors, dtype: str
  ) -> tuple[FineTuningModel, rules.NameMap, Tensors]:
    """A model with a head, and how to read its tensors."""
    ours = bert.transformer_config(config, source, dtype)
    output = tensors.get(f'{self.output}.weight')
    if output is None or output.ndim != 2 or len(output) < 2:
      raise UserError(f'{source}: {self.output}.weight has no classes')
    kind = Classification(len(output), self.activation)
    main = Encoder(ours, parent=None)
    module = Finetuner(ours, main, {_TASK: kind}, parent=None)
    tensors = bert.without_segments(tensors, f'{self.MODEL_TYPE}.embeddings')
    return FineTuningModel(module), self._map(ours, _TASK), tensors

  def _map(self, config: TransformerConfig, task: str) -> rules.NameMap:
    encoder: Sequence[Rule] = electra.encoder_rules(
      config, 'main', self.MODEL_TYPE
    )
    return rules.NameMap(
      (
        *bert.embedding_rules('embedder', f'{self.MODEL_TYPE}.embeddings'),
        *encoder,
        *rules.dense(f'heads/{task}/dense', self.dense),
        *rules.dense(f'heads/{task}/output', self.output),
      ),
      unread=bert.UNREAD,
    )


ELECTRA = Classifier(
  'electra',
  'ElectraForSequenceClassification',
  'gelu',
  'classifier.dense',
  'classifier.out_proj',
  wide=False,
)
BERT = Classifier(
  'bert',
  'BertForSequenceClassification',
  'tanh',
  'bert.pooler.dense',
  'classifier',
  wide=True,
)
