/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_ANNOTATIONS_H
#define SOCKMESH_POD_ANNOTATIONS_H

/*
 * The notations of annotation values: booleans as Go reads them and comma-separated lists of any
 * length. Pure. Blanks around an item are ignored, a blank text is an empty list, an empty item is
 * an error. Items keep their order and their repeats.
 *
 * `where` begins every error ("annotation NAME"), which goes on with the value, the item's number
 * and its text: annotation NAME: "80,x1": item 2 "x1" is not a port (0-65535). Whatever the value
 * holds, the text of the error is printable ASCII.
 */
#include "redirect_plan.h"

#include <stdbool.h>

struct error;

enum {
	POD_VALUE_QUOTED_MAX = 96,
	POD_VALUE_INTERFACES_MAX = 64, /* names in one list */
};

/* In quotes, cut with "..." where too long, other than printable ASCII as \xNN. Returns buf. */
const char *pod_value_quote(const char *text, char buf[static POD_VALUE_QUOTED_MAX]);

/* strconv.ParseBool: 1 t T TRUE true True, 0 f F FALSE false False. False: neither. */
bool pod_value_bool(const char *text, bool *ret);

/* -EINVAL or -ENOMEM; a list that was returned is the caller's to free. */
int pod_value_ports(const char *where, const char *text, struct port_list *ret, struct error *err);
int pod_value_prefixes(const char *where, const char *text, struct prefix_list *ret,
		       struct error *err); /* ADDRESS/LENGTH, both families */
int pod_value_proxy_ids(const char *where, const char *text, struct id_list *ret,
			struct error *err); /* never 0, never an empty list */
int pod_value_groups(const char *where, const char *text, struct id_list *ret, struct error *err);

/*
 * Names that a network device can have and that every engine can write down: 1 to 15 printable
 * characters, none of " ' \ / : and !, not "." or "..", no "-" in front, no "+" at the end, which
 * iptables takes for a pattern.
 */
int pod_value_interfaces(const char *where, const char *text, struct name_list *ret,
			 struct error *err);

#endif
