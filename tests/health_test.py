# SPDX-License-Identifier: Apache-2.0
"""Alarms: each on a planted failure, none on the course of a healthy run."""

import math
import re

import numpy as np
import pytest

from metro_jax import health

STEPS, PERIOD = 1500, 25


def healthy(seed=0):
  """Lines like those of a real run of the smallest recipe.

  The main model finds nothing for a long time, and its loss rises at first as
  the auxiliary gets better: both are as they should be.
  """
  rng = np.random.default_rng(seed)
  lines = []
  for step in range(PERIOD, STEPS + 1, PERIOD):
    u = step / STEPS

    def noisy(value, spread=0.01):
      return float(value * (1 + spread * rng.standard_normal()))

    lines.append(
      {
        'step': step,
        'loss': noisy(14 + 8 * math.exp(-8 * u)),
        'loss/mlm': noisy(5.2 + 3 * math.exp(-6 * u)),
        'loss/clm': noisy(5.4 + 3 * math.exp(-5 * u)),
        'loss/rtd': noisy(0.37 + 0.03 * math.sin(3 * u)),
        'replace_rate': noisy(0.14 - 0.01 * u),
        'replace_accuracy': 0.12 if step == PERIOD else noisy(0.02 * u**4),
        'rtd_precision': math.nan,
        'rtd_auc': noisy(0.52 + 0.1 * u**2, 0.005),
        'auxiliary_accuracy': noisy(0.02 + 0.15 * u),
        'auxiliary_entropy': noisy(5.4 + 2.7 * math.exp(-6 * u)),
        'update_ratio/main': noisy(0.03 * (1 - u) + 1e-4),
        'update_ratio/rtd_head': noisy(1.0),
        'refused_steps': 0.0,
        'curriculum/gamma': math.exp(-10 * u),
        'mixture/depth_4': noisy(0.3 + 0.3 * u),
        'mixture/depth_8': noisy(0.7 - 0.3 * u),
      }
    )
  return lines


def planted(start=0.0, **changes):
  """A healthy run, but for some metrics from a fraction of it on."""
  lines = healthy()
  for line in lines:
    if line['step'] > start * STEPS:
      u = line['step'] / STEPS
      line |= {k: v(u) if callable(v) else v for k, v in changes.items()}
  return lines


@pytest.mark.parametrize('seed', range(5))
def test_healthy_runs_raise_none(seed):
  assert health.findings(healthy(seed), STEPS) == []


FAILURES = {
  'diverging': planted(0.5, **{'loss/mlm': lambda u: 5.3 + 8 * (u - 0.5)}),
  'updates too big': planted(**{'update_ratio/main': 0.6}),
  'steps refused': planted(0.3, refused_steps=0.4),
  'all original': planted(rtd_auc=0.503, replace_accuracy=0.0),
  'auxiliary too strong': planted(0.5, auxiliary_accuracy=0.93),
  'auxiliary too weak': planted(0.2, rtd_auc=0.995, replace_accuracy=0.97),
  'mixture collapsed': planted(
    0.2, **{'mixture/depth_4': 0.01, 'mixture/depth_8': 0.99}
  ),
  'schedule over too early': planted(
    **{'curriculum/gamma': lambda u: math.exp(-100 * u)}
  ),
}


def test_every_alarm_has_its_failure():
  assert list(FAILURES) == [alarm.name for alarm in health.ALARMS]


@pytest.mark.parametrize('name', FAILURES)
def test_each_failure_raises_its_alarm_once(name):
  found = health.findings(FAILURES[name], STEPS)
  assert [finding.name for finding in found] == [name]
  text = str(found[0])
  assert re.match(rf'alarm at step {found[0].step}: [^\n]*; [^\n]*$', text)
  assert 'nan' not in text


def test_the_auxiliary_is_too_strong_when_detection_gets_worse():
  lines = planted(0.2, rtd_auc=lambda u: 0.9 if u < 0.6 else 0.7)
  (found,) = health.findings(lines, STEPS)
  assert found.name == 'auxiliary too strong'
  assert '0.78, at best 0.90' in found.words


def test_parameters_that_blow_up_tell_of_a_high_learning_rate():
  lines = planted(param_norm=lambda u: 100 * min(1 + 60 * u, 30))
  (found,) = health.findings(lines, STEPS)
  assert found.name == 'updates too big'
  assert 'times as large' in found.words and 'rate is too high' in found.words
  # In a long run they grow by right.
  assert not health.findings(planted(param_norm=lambda u: 100 + 700 * u), STEPS)


def test_an_auxiliary_that_does_not_learn_is_too_weak():
  lines = planted(**{'loss/mlm': 8.0})
  (found,) = health.findings(lines, STEPS)
  assert found.name == 'auxiliary too weak' and found.step >= STEPS / 2


def test_an_alarm_is_raised_again_after_it_has_been_silent():
  lines = planted(refused_steps=lambda u: 0.4 if u % 0.5 > 0.4 else 0.0)
  found = health.findings(lines, STEPS)
  assert [f.name for f in found] == ['steps refused'] * 2


def test_a_resumed_monitor_says_nothing_twice():
  lines = FAILURES['steps refused']
  whole = health.Monitor(STEPS)
  expected = [f for line in lines for f in whole.see(line)]
  again = health.Monitor(STEPS)
  before = [f for line in lines[:40] for f in again.see(line)]
  after = [f for line in lines[40:] for f in again.see(line)]
  assert before + after == expected and len(expected) == 1
