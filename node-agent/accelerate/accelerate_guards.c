/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_guards.h"

#include "accelerate_abi.h"

uint32_t accelerate_guards(void)
{
	return GUARD_ALL;
}
