# SPDX-License-Identifier: Apache-2.0
r"""Launches a run with XManager, with T5X's flags.

  xmanager launch metro_jax/scripts/xm_launch.py -- \
    --gin_file=metro_lm/base.gin --tpu_cores=32 \
    --model_dir=/gcs/my-bucket/runs/base

Every --gin... flag is passed on to metro_jax.train. --print_job prints the job
as JSON and launches nothing; it does not need XManager (pip install xmanager).
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import app

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE_IMAGE = 'python:3.11-bookworm'


@dataclasses.dataclass(frozen=True)
class Job:
  """All that XManager is asked for.

  Attributes:
    title: Of the experiment.
    requirements: Resource name -> number.
    path: The folder that is packed into the image.
    base_image: What the image starts from.
    docker_instructions: What is done to it.
    entrypoint: Shell commands; the last one trains.
    args: Words that are added to the last command.
  """

  title: str
  requirements: dict[str, int]
  path: str
  base_image: str
  docker_instructions: tuple[str, ...]
  entrypoint: tuple[str, ...]
  args: tuple[str, ...]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Flags of this script, and the words for metro_jax.train: all --gin..."""
  parser = argparse.ArgumentParser(
    prog='xm_launch.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--model_dir',
    required=True,
    help='where the run lives; visible to all workers',
  )
  parser.add_argument(
    '--tfds_data_dir', help='where TFDS corpora were prepared'
  )
  parser.add_argument(
    '--tpu_cores',
    type=int,
    default=8,
    help='number of TPU cores, a worker for every 8 (default: 8)',
  )
  parser.add_argument(
    '--tpu_type',
    default='tpu_v3',
    help="XManager's name of the resource (default: tpu_v3)",
  )
  parser.add_argument(
    '--name', default='metro_jax', help='title of the experiment'
  )
  parser.add_argument(
    '--clone_github',
    metavar='URL',
    help='clone this, instead of copying this checkout',
  )
  parser.add_argument(
    '--print_job',
    action='store_true',
    help='print the job as JSON, and launch nothing',
  )
  gin_args = [word for word in argv if word.startswith('--gin')]
  given = parser.parse_args([w for w in argv if not w.startswith('--gin')])
  if not any(word.startswith('--gin_file=') for word in gin_args):
    parser.error('no --gin_file: what shall be trained?')
  return given, gin_args


def make_job(given: argparse.Namespace, gin_args: Sequence[str]) -> Job:
  """The job that the flags describe."""
  copy = f'COPY {ROOT.name}/ metro_jax'
  if given.clone_github:
    copy = f'RUN git clone --depth=1 {given.clone_github} metro_jax'
  train = 'python3 -m metro_jax.train --gin.MODEL_DIR=${MODEL_DIR}'
  exports = [f"export MODEL_DIR='{given.model_dir}'"]
  if given.tfds_data_dir:
    exports.append(f"export TFDS_DATA_DIR='{given.tfds_data_dir}'")
    train += ' --tfds_data_dir=${TFDS_DATA_DIR}'
  return Job(
    title=given.name,
    requirements={given.tpu_type: given.tpu_cores},
    path=str(ROOT),
    base_image=BASE_IMAGE,
    docker_instructions=(
      copy,
      'WORKDIR metro_jax',
      "RUN python3 -m pip install -e '.[tpu]'",
    ),
    entrypoint=(*exports, train),
    args=tuple(gin_args),
  )


def launch(job: Job) -> None:
  """Hands a job to XManager."""
  from xmanager import xm, xm_local

  @xm.run_in_asyncio_loop
  async def submit() -> None:
    async with xm_local.create_experiment(
      experiment_title=job.title
    ) as experiment:
      executor = xm_local.Vertex(
        requirements=xm.JobRequirements(**job.requirements)
      )
      (executable,) = experiment.package(
        [
          xm.python_container(
            executor.Spec(),
            path=job.path,
            base_image=job.base_image,
            docker_instructions=list(job.docker_instructions),
            entrypoint=xm.CommandList(list(job.entrypoint)),
          )
        ]
      )
      experiment.add(
        xm.Job(executable=executable, executor=executor, args=list(job.args))
      )

  submit()


def main(argv: Sequence[str]) -> int:
  """Prints or launches the job; `argv` as in sys.argv."""
  job = make_job(*parse(argv[1:]))
  if '--print_job' in argv:
    print(json.dumps(dataclasses.asdict(job), indent=2))
    return 0
  try:
    launch(job)
  except ImportError as error:
    print(
      f'error: {error}: pip install xmanager, or add --print_job',
      file=sys.stderr,
    )
    return 2
  return 0


if __name__ == '__main__':
  # XManager has absl flags of its own, which must have been parsed. Words after
  # -- are left alone; `xmanager launch` does the same.
  app.run(main, argv=[sys.argv[0], '--', *sys.argv[1:]])
