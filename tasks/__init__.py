# SPDX-License-Identifier: Apache-2.0
"""SeqIO tasks and mixtures: importing this package registers them all."""

from tasks import corrupted as corrupted
from tasks import pretrain as pretrain
