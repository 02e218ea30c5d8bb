/* SPDX-License-Identifier: Apache-2.0 */
/* Header fields of each direction's packets: addresses of the link layer, the tag behind the outermost one, TTLs, the IPv6 flow
 * label. Read from the frame itself, which must still be there; docs/flow-semantics.md has the definitions. */
#ifndef JARVIS_HEADER_STATISTICS_H
#define JARVIS_HEADER_STATISTICS_H

#include "decode/packet.h"
#include "jarvis_capture.h"

struct header_statistics {
    struct capture_headers side[2]; /* by endpoint of the flow key */
};
static_assert(sizeof(struct header_statistics) == 48, "what docs/flow-semantics.md says a flow takes");

/* Takes a packet of the record into account. first: none of its direction was. */
void header_statistics_count(struct header_statistics *headers, const struct packet *packet, bool first);

#endif
