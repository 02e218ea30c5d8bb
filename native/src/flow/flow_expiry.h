/* SPDX-License-Identifier: Apache-2.0 */
/* When a flow ends and why: pure functions of a record and a time (docs/flow-semantics.md). */
#ifndef JARVIS_FLOW_EXPIRY_H
#define JARVIS_FLOW_EXPIRY_H

#include "flow/flow_table.h"

/* The active timeout ends this record, but its connection may go on and what the record knows of it is needed then: that it is
 * half closed or, with TCP statistics, which sequence numbers were seen. */
bool flow_leaves_remainder(const struct flow_table_config *config, const struct flow_record *record, uint8_t reason);

enum tcp_flag { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_ACK = 0x10 };

/* The earliest instant at which the flow ends if nothing more comes; UINT64_MAX: never. *reason (NULL allowed) says why. */
uint64_t flow_deadline(const struct flow_table_config *config, const struct flow_record *record, uint8_t *reason);

/* Why the flow has ended by now_ns, or CAPTURE_FLOW_END_NONE. */
uint8_t flow_ended_by(const struct flow_table_config *config, const struct flow_record *record, uint64_t now_ns);

/* Why the flow ends before this packet of it is added, or CAPTURE_FLOW_END_NONE. */
uint8_t flow_ended_before(const struct flow_table_config *config, const struct flow_record *record, const struct packet *packet);

/* Follows the TCP state by a packet with FIN or RST; true when it closed the flow. */
bool flow_follow_tcp(struct flow_record *record, const struct packet *packet);

#endif
