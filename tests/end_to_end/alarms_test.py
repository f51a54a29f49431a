# SPDX-License-Identifier: Apache-2.0
"""Real runs: the right alarm where something was planted, else none.

Short runs of the smallest recipe, narrower still; the guard is on. All recipes
and five seeds: alarm_runs.py.
"""

import alarm_runs
import pytest

from metro_jax.training import summaries

pytestmark = pytest.mark.slow


def test_a_healthy_run_raises_none_and_refuses_nothing(tmp_path):
  assert alarm_runs.train(tmp_path / 'run', 'metro_lm', 200) == []
  folder = tmp_path / 'run' / 'train'
  lines = summaries.read_jsonl(folder / 'metrics.jsonl')
  assert len(lines) == 200 // alarm_runs.SMALL['STATS_PERIOD']
  assert {line['refused_steps'] for line in lines} == {0.0}
  assert not (folder / summaries.EVENTS).exists()


@pytest.mark.parametrize('name', alarm_runs.FAILURES)
def test_a_planted_failure_raises_its_alarm(tmp_path, name):
  found = alarm_runs.fail(tmp_path / 'run', name)
  assert any(alarm_runs.FAILURES[name].alarm in line for line in found), found
