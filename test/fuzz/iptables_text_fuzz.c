/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What iptables-save printed can be read, or is refused; what was read can be compared, made and
 * unmade, and drained.
 */
#include "error.h"
#include "iptables_text.h"
#include "scoped.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped_free char *text = calloc(1, size + 1);
	struct iptables_set set = {0}, drained = {0}, none = {0};
	const struct nf_rules nothing = {0};
	char *change = NULL, *gone = NULL;
	struct error err = {0};

	if (!text)
		return 0;
	memcpy(text, data, size);
	if (!iptables_text_parse(text, &set, &err)) {
		/* A name that stands twice is unlike itself: it is a difference, as it should. */
		iptables_text_compare(&set, &set, &err);
		if (iptables_text_change(&none, &set, IPTABLES_NAT_LAST, &change, &err))
			abort();
		if (iptables_text_change(&set, &none, IPTABLES_NAT_FIRST, &gone, &err))
			abort();
		iptables_text_drain(&set, &nothing, (struct iptables_form){0}, &drained, &err);
		iptables_set_packets(&set, "established");
	}
	free(change);
	free(gone);
	iptables_set_done(&drained);
	iptables_set_done(&set);
	return 0;
}
