/* SPDX-License-Identifier: Apache-2.0 */
/* What parses must print, and parse again to the same value. */
#include "error.h"
#include "ip_address.h"
#include "scoped.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_prefix(const char *text)
{
	char printed[IP_PREFIX_TEXT_MAX];
	struct ip_prefix p, again;
	struct error err = {0};

	if (ip_prefix_parse(text, &p, &err) < 0)
		return;
	if (ip_prefix_parse(ip_prefix_format(&p, printed), &again, &err) < 0 ||
	    p.length != again.length || !ip_address_equal(&p.address, &again.address) ||
	    !ip_prefix_contains(&p, &p.address) || !ip_prefix_covers(&p, &again))
		abort();
}

static void check_endpoint(const char *text)
{
	char printed[IP_ENDPOINT_TEXT_MAX];
	struct ip_address a, a_again;
	uint16_t port, port_again;
	struct error err = {0};

	if (ip_endpoint_parse(text, &a, &port, &err) < 0)
		return;
	if (ip_endpoint_parse(ip_endpoint_format(&a, port, printed), &a_again, &port_again, &err) <
		    0 ||
	    port != port_again || !ip_address_equal(&a, &a_again))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	scoped_free char *text = malloc(size + 1);

	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = '\0';
	check_prefix(text);
	check_endpoint(text);
	return 0;
}
