# SPDX-License-Identifier: Apache-2.0
"""Launchers, as far as they go without a cloud: what they would run.

Shell scripts are parsed by bash, printed, and run against commands of the same
names that only take notes.
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import types

import pytest

from metro_jax.scripts import xm_launch

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / 'metro_jax' / 'scripts'
TPU = SCRIPTS / 'tpu_vm.sh'
SLURM = SCRIPTS / 'gpu_slurm.sh'
TRAIN = ['--gin_file=metro_lm/xl.gin', '--gin.MODEL_DIR=/mnt/metro/runs/xl']


def bash(script, *words, env=None, check=True):
  return subprocess.run(
    ['bash', script, *words],
    cwd=ROOT,
    env=os.environ | (env or {}),
    capture_output=True,
    text=True,
    check=check,
  )


@pytest.mark.parametrize('script', sorted(SCRIPTS.glob('*.sh')), ids=str)
def test_bash_reads_it(script):
  subprocess.run(['bash', '-n', script], check=True)


# ----------------------------------------------------------------------
# Cloud TPU.
# ----------------------------------------------------------------------

WHERE = ['--name=xl', '--zone=us-east5-a']
WHAT = ['--type=v5p-128', '--spot']


def test_tpu_commands():
  done = bash(TPU, 'all', *WHERE, *WHAT, '--print', '--', *TRAIN)
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  gcloud = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  assert lines[0] == [
    *gcloud, 'create', 'xl', '--zone=us-east5-a',
    '--accelerator-type=v5p-128', '--version=v2-alpha-tpuv5', '--spot',
  ]  # fmt: skip
  assert lines[1][:2] == ['git', 'archive']
  assert lines[2][:5] == [*gcloud, 'scp']
  install, train = lines[3], lines[4]
  for line in (install, train):
    assert line[:5] == [*gcloud, 'ssh'] and '--worker=all' in line
  assert install[-1].endswith('make install PYTHON=python3.11 EXTRAS=tpu')
  assert train[-1].endswith(
    'exec .venv/bin/python -m metro_jax.train ' + ' '.join(TRAIN)
  )
  assert lines[5] == [*gcloud, 'delete', 'xl', '--zone=us-east5-a', '--quiet']
  assert len(lines) == 6


def test_tpu_words_survive_both_shells():
  """A pattern with spaces arrives on the worker as one word."""
  words = ["--gin.TEXT_FILES='/a b/*.txt'", '--gin.TRAIN_STEPS=5']
  done = bash(TPU, 'run', *WHERE, '--print', '--', *words)
  (line,) = done.stdout.splitlines()
  remote = shlex.split(line)[-1].removeprefix('--command=')
  assert shlex.split(remote)[-2:] == words


@pytest.mark.parametrize(
  'words, message',
  [
    ([], 'no command'),
    (['fly'], 'fly is not a command'),
    (['create', '--zone=a'], 'no --name'),
    (['create', '--name=a'], 'no --zone'),
    (['create', *WHERE], 'no --type'),
    (['run', *WHERE], 'nothing to train'),
    (['run', *WHERE, '--gin_file=x'], '--gin_file=x is not a flag'),
    (['run', *WHERE, '--retries=x', '--', 'y'], '--retries=x is not a number'),
  ],
)
def test_tpu_mistakes(words, message):
  done = bash(TPU, *words, '--print', check=False)
  if not words:
    done = bash(TPU, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: {message}'), done.stderr
  assert len(done.stderr.splitlines()) == 1


# Fails as often as `failures` says, and knows the state in `state`.
GCLOUD = """#!/bin/bash
cd "$(dirname "$0")"
echo "$4" >> calls
if [[ $4 == describe ]]; then cat state; fi
if [[ $4 == ssh && $* == *metro_jax.train* ]]; then
  left=$(cat failures); echo $((left - 1)) > failures
  if ((left > 0)); then exit 1; fi
fi
exit 0
"""


def fake_tpu(folder, failures, state, *flags):
  for name, text in (('gcloud', GCLOUD), ('git', '#!/bin/bash\n')):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  (folder / 'failures').write_text(str(failures))
  (folder / 'state').write_text(state)
  env = {'PATH': f'{folder}:{os.environ["PATH"]}', 'METRO_RETRY_SECONDS': '0'}
  words = ['run', *WHERE, *WHAT, *flags, '--', *TRAIN]
  done = bash(TPU, *words, env=env, check=False)
  return done, (folder / 'calls').read_text().split()


def test_a_preempted_tpu_is_made_again(tmp_path):
  done, calls = fake_tpu(tmp_path, 1, 'PREEMPTED')
  assert done.returncode == 0, done.stderr
  again = ['describe', 'delete', 'create', 'scp', 'ssh']
  assert calls == ['ssh', *again, 'ssh']


def test_a_crash_is_started_again_on_the_same_tpu(tmp_path):
  done, calls = fake_tpu(tmp_path, 2, 'READY')
  assert done.returncode == 0
  assert calls == ['ssh', 'describe', 'ssh', 'describe', 'ssh']


def test_a_crash_each_time_is_given_up(tmp_path):
  done, calls = fake_tpu(tmp_path, 9, 'READY', '--retries=2')
  assert done.returncode == 2
  assert done.stderr.startswith('error: failed 3 times')
  assert calls.count('ssh') == 3


# ----------------------------------------------------------------------
# SLURM.
# ----------------------------------------------------------------------


def test_slurm_command():
  done = bash(SLURM, *TRAIN, env={'METRO_PRINT': '1'})
  assert shlex.split(done.stdout) == [
    'srun', '--kill-on-bad-exit=1', '--label',
    '.venv/bin/python', '-m', 'metro_jax.train', *TRAIN,
  ]  # fmt: skip


def test_slurm_asks_for_a_process_for_each_gpu():
  asked = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in SLURM.read_text().splitlines()
    if line.startswith('#SBATCH')
  )
  assert asked['ntasks-per-node'] == asked['gpus-per-node']
  assert {'requeue', 'signal'} <= asked.keys()


def test_slurm_needs_something_to_train():
  done = bash(SLURM, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith('error: nothing to train')


def fake_slurm(folder, srun, scancel='kill -TERM $(cat pid)'):
  notes = '#!/bin/bash\ncd "$(dirname "$0")"\necho "$0 $*" >> calls\n'
  for name, text in (
    ('srun', f'#!/bin/bash\ncd "$(dirname "$0")"\n{srun}'),
    ('scancel', f'{notes}{scancel}\n'),
    ('scontrol', notes),
  ):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  env = {'PATH': f'{folder}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7'}
  return subprocess.Popen(['bash', SLURM, *TRAIN], env=os.environ | env)


# A step that saves, and ends, when it is told to.
SAVES = """
trap "echo saved > saved; exit 0" TERM
echo $$ > pid.new && mv pid.new pid
while true; do sleep 0.05; done
"""


def time_is_up(job, folder):
  """Sends the job SLURM's warning once its step runs; its exit code."""
  limit = time.monotonic() + 20
  while not (folder / 'pid').exists():
    assert time.monotonic() < limit
    time.sleep(0.05)
  job.send_signal(signal.SIGUSR1)
  return job.wait(20)


@pytest.mark.parametrize(
  'scancel',
  [
    'kill -TERM $(cat pid)',
    'kill -TERM $(cat pid); while kill -0 $(cat pid); do sleep 0.01; done',
  ],
  ids=['returns_first', 'step_ends_first'],
)
def test_slurm_queues_again_when_its_time_is_up(tmp_path, scancel):
  job = fake_slurm(tmp_path, SAVES, scancel)
  assert time_is_up(job, tmp_path) == 0
  assert (tmp_path / 'saved').exists()
  cancel, requeue = (tmp_path / 'calls').read_text().splitlines()
  assert cancel.endswith('scancel --signal=TERM 7')
  assert requeue.endswith('scontrol requeue 7')


def test_slurm_does_not_queue_a_failed_run_again(tmp_path):
  fails = SAVES.replace('exit 0', 'exit 3')
  assert time_is_up(fake_slurm(tmp_path, fails), tmp_path) == 3
  assert 'requeue' not in (tmp_path / 'calls').read_text()


def test_slurm_goes_on_where_scancel_fails(tmp_path):
  step = 'echo > pid\nwhile [ ! -e calls ]; do sleep 0.05; done\nexit 0\n'
  assert time_is_up(fake_slurm(tmp_path, step, 'exit 1'), tmp_path) == 0
  assert 'requeue' in (tmp_path / 'calls').read_text()


@pytest.mark.parametrize('code', [0, 3])
def test_slurm_ends_as_the_run_ends(tmp_path, code):
  assert fake_slurm(tmp_path, f'exit {code}\n').wait(20) == code
  assert not (tmp_path / 'calls').exists()


# ----------------------------------------------------------------------
# XManager.
# ----------------------------------------------------------------------


XM = ['xm_launch.py', '--model_dir=/gcs/b/runs/xl', '--tpu_cores=32', TRAIN[0]]


def test_xm_prints_the_job(capsys):
  words = [*XM, '--gin.BATCH_SIZE=512', '--tfds_data_dir=/gcs/b/data']
  assert xm_launch.main([*words, '--print_job']) == 0
  job = json.loads(capsys.readouterr().out)
  assert job['requirements'] == {'tpu_v3': 32}
  assert job['args'] == [TRAIN[0], '--gin.BATCH_SIZE=512']
  assert job['entrypoint'] == [
    "export MODEL_DIR='/gcs/b/runs/xl'",
    "export TFDS_DATA_DIR='/gcs/b/data'",
    'python3 -m metro_jax.train --gin.MODEL_DIR=${MODEL_DIR}'
    ' --tfds_data_dir=${TFDS_DATA_DIR}',
  ]
  assert f'COPY {ROOT.name}/ metro_jax' in job['docker_instructions']


def test_xm_hands_over_the_job(monkeypatch):
  """Against a stand-in that keeps what it is given."""
  kept = {}

  class Experiment:
    async def __aenter__(self):
      return self

    async def __aexit__(self, *error):
      pass

    def package(self, containers):
      kept['container'] = containers[0]
      return ['image']

    def add(self, job):
      kept['job'] = job

  def keep(**fields):
    return types.SimpleNamespace(**fields)

  def run_in_asyncio_loop(function):
    import asyncio

    return lambda: asyncio.run(function())

  xm = types.SimpleNamespace(
    JobRequirements=keep,
    Job=keep,
    CommandList=list,
    python_container=lambda spec, **fields: keep(spec=spec, **fields),
    run_in_asyncio_loop=run_in_asyncio_loop,
  )
  vertex = types.SimpleNamespace(Spec=lambda: 'spec')
  xm_local = types.SimpleNamespace(
    create_experiment=lambda experiment_title: Experiment(),
    Vertex=lambda requirements: kept.update(asked=requirements) or vertex,
  )
  package = types.SimpleNamespace(xm=xm, xm_local=xm_local)
  monkeypatch.setitem(sys.modules, 'xmanager', package)
  job = xm_launch.make_job(*xm_launch.parse(XM[1:]))
  assert xm_launch.main(XM) == 0
  assert kept['asked'].tpu_v3 == 32
  assert kept['job'].args == TRAIN[:1]
  assert kept['job'].executable == 'image'
  assert kept['container'].entrypoint == list(job.entrypoint)
  assert kept['container'].path == str(ROOT)


@pytest.mark.parametrize(
  'words, message',
  [
    (XM[:1] + XM[2:], 'the following arguments are required: --model_dir'),
    (XM[:3], 'no --gin_file'),
    ([*XM, '--tpu_core=8'], 'unrecognized arguments: --tpu_core=8'),
  ],
)
def test_xm_mistakes(words, message, capsys):
  with pytest.raises(SystemExit) as end:
    xm_launch.main(words)
  assert end.value.code == 2
  assert f'error: {message}' in capsys.readouterr().err


def test_xm_without_xmanager(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'xmanager', None)
  assert xm_launch.main(XM) == 2
  assert 'pip install xmanager' in capsys.readouterr().err


def test_xm_as_a_script():
  """Words reach it past absl, whose flags XManager wants parsed."""
  done = subprocess.run(
    [sys.executable, SCRIPTS / 'xm_launch.py', *XM[1:], '--print_job'],
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(done.stdout)['args'] == [TRAIN[0]]
