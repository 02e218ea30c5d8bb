/* SPDX-License-Identifier: Apache-2.0 */
/* The encoder of NetFlow v9 (RFC 3954) and IPFIX (RFC 7011), which differ in headers, options and a few elements. */
#ifndef JARVIS_EXPORT_IPFIX_H
#define JARVIS_EXPORT_IPFIX_H

#include "export/encoder.h"
#include "export/layout.h"

enum { NETFLOW9_HEADER = 20, IPFIX_HEADER = 16 };

struct ipfix_encoder {
    struct capture_export_config config;
    bool netflow9;
    struct layout layouts[2]; /* of IPv4 and of IPv6 records */
};

extern const struct export_encoder_ops export_netflow9_ops;
extern const struct export_encoder_ops export_ipfix_ops;

/* A message of templates or options under way, and the block that finished ones go to. */
struct ipfix_writer {
    struct ipfix_encoder *encoder;
    struct export_message *message;
    struct export_block *block;
};

/* Room for a record in a set of this id, in the message under way or a new one. NULL: the block is full, or the record is longer
 * than a message may be. */
uint8_t *ipfix_writer_record(struct ipfix_writer *writer, uint16_t set_id, uint32_t length);

/* The last message, too, goes to the block. CAPTURE_OK or CAPTURE_ERR_SPACE. */
int ipfix_writer_end(struct ipfix_writer *writer);

/* templates.c: templates of records, then those of options. */
int ipfix_put_templates(void *encoder, struct export_message *message, struct export_block *block);

/* options.c */
int ipfix_put_options_templates(struct ipfix_writer *writer);
int ipfix_put_options(void *encoder, const struct capture_export_statistics *statistics,
                      const struct capture_export_interface *interfaces, uint32_t interface_count, struct export_message *message,
                      struct export_block *block);

#endif
