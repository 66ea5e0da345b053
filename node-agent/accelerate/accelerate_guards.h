/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_GUARDS_H
#define SOCKMESH_ACCELERATE_GUARDS_H

/*
 * Which guards the accelerator's programs have: all of them. A file of its own, so that the tests
 * can link another one (test/lib/accelerate_guards_test.c), which takes guards away to show what
 * each of them is for. The product has no switch for it.
 */
#include <stdint.h>

uint32_t accelerate_guards(void); /* bits of enum accel_guard */

#endif
