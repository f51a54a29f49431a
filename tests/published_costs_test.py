# SPDX-License-Identifier: Apache-2.0
"""Table 1 of Fast-ELECTRA, to its printed digits."""

import pytest

from metro_jax import published_costs as costs

# Main, joint and frozen auxiliary, the two methods, and their ratio.
PRINTED = {
  ('base', costs.computation): (591.9, 398.6, 132.9, 990.5, 724.8, 0.73),
  ('large', costs.computation): (1407.7, 653.9, 218.0, 2061.6, 1625.6, 0.79),
  ('base', costs.memory): (23.0, 7.0, 0.25, 30.0, 23.3, 0.77),
  ('large', costs.memory): (60.2, 14.4, 0.42, 74.6, 60.6, 0.81),
}


@pytest.mark.parametrize('size, count', PRINTED)
def test_table_1(size, count):
  cost = count(costs.SIZES[size])
  joint, frozen = cost.totals
  got = (cost.main, cost.joint, cost.frozen, joint, frozen, frozen / joint)
  for x, printed in zip(got, PRINTED[size, count], strict=True):
    digits = len(str(printed).split('.')[1])
    assert round(x, digits) == printed
