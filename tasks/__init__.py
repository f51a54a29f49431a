# SPDX-License-Identifier: Apache-2.0
"""SeqIO tasks and mixtures: importing this package registers them all."""

from tasks import pretrain as pretrain
