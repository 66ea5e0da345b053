#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Restarts of everything around pods that stay, go and change meanwhile, and pods that join and leave
# under load: the part of test/enrolment/load.sh that is short enough for every run.
LOAD_SUITE=1 exec "$(dirname "$0")/../enrolment/load.sh"
