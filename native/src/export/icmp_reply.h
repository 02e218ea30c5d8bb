/* SPDX-License-Identifier: Apache-2.0 */
/* What the reverse direction of an ICMP flow is said to be: a flow keeps the type of its first packet alone. */
#ifndef JARVIS_EXPORT_ICMP_REPLY_H
#define JARVIS_EXPORT_ICMP_REPLY_H

#include <stdint.h>

enum { IP_PROTOCOL_ICMP = 1, IP_PROTOCOL_ICMPV6 = 58 };

/* The answer to a request; whatever has none goes both ways with the type of the flow's first packet. */
static inline uint8_t icmp_reply_type(uint8_t protocol, uint8_t type) {
    if (protocol == IP_PROTOCOL_ICMPV6) {
        switch (type) {
        case 128: /* echo request, RFC 4443 */
        case 133: /* router solicitation, RFC 4861 */
        case 135: /* neighbour solicitation */
            return (uint8_t)(type + 1);
        case 129:
        case 134:
        case 136:
            return (uint8_t)(type - 1);
        default:
            return type;
        }
    }
    switch (type) {
    case 8: /* echo, RFC 792 */
        return 0;
    case 0:
        return 8;
    case 13: /* timestamp */
    case 17: /* address mask, RFC 950 */
        return (uint8_t)(type + 1);
    case 14:
    case 18:
        return (uint8_t)(type - 1);
    default:
        return type;
    }
}

#endif
