# SPDX-License-Identifier: Apache-2.0
"""Where an auxiliary's parameters are in the checkpoint of another run."""

from collections.abc import Collection

from metro_jax.errors import UserError

# Part of an auxiliary: where it may be in a run that had an auxiliary, the
# first that is there; and in one whose main model was the masked LM.
_SOURCES = {
  'auxiliary/embedder/': (('auxiliary/embedder/', 'embedder/'), 'embedder/'),
  'auxiliary/encoder/': (('auxiliary/encoder/',), 'main/'),
  'auxiliary/mlm_head/': (('auxiliary/mlm_head/',), 'lm_head/'),
}


def auxiliary_source(
  wanted: Collection[str], saved: Collection[str]
) -> dict[str, str]:
  """Names in a checkpoint for the parameters of an auxiliary.

  The checkpoint is that of a run with an auxiliary, whose auxiliary is taken
  (with what it shared with its main model), or that of masked language
  modelling, whose main model is taken.

  Args:
    wanted: names of this model, slash-joined; all below 'auxiliary/'.
    saved: names in the checkpoint.

  Returns:
    For each wanted name one that is to be read instead. It need not exist: a
    model that does not fit is refused where shapes are compared.
  """
  has_auxiliary = any(name.startswith('auxiliary/') for name in saved)
  sources = {}
  for name in wanted:
    prefix = next((p for p in _SOURCES if name.startswith(p)), None)
    if prefix is None:
      raise UserError(
        f'AUX_CHECKPOINT_PATH: parameter {name} is not one that a masked'
        ' language model has; train this auxiliary with the main model'
      )
    own, main = _SOURCES[prefix]
    rest = name.removeprefix(prefix)
    places = [p + rest for p in (own if has_auxiliary else (main,))]
    sources[name] = next((p for p in places if p in saved), places[-1])
  root = 'auxiliary/encoder/' if has_auxiliary else 'main/'
  left = sorted(
    {n for n in saved if n.startswith(root)} - set(sources.values())
  )
  if left:
    raise UserError(
      f'AUX_CHECKPOINT_PATH: {left[0]} is in the checkpoint and not in this'
      ' auxiliary; give the auxiliary the depth (AUX_LAYERS) and the positions'
      ' that the checkpoint was trained with'
    )
  return sources
