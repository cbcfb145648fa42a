# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that loads the mock device before torch, in xdist's workers too."""

from tests.gpu import mock_cuda

mock_cuda.install()
mock_cuda.record_syncs(False)
