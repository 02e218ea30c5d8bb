/* SPDX-License-Identifier: Apache-2.0 */
/* What the records of one template consist of: its fields, and for each direction the steps that write them. */
#ifndef JARVIS_EXPORT_LAYOUT_H
#define JARVIS_EXPORT_LAYOUT_H

#include "export/elements.h"

/* Raised whenever the content of any template changes, so that no id ever means two things; modulo 4. */
enum { LAYOUT_REVISION = 0 };

enum {
    TEMPLATE_ID_RECORDS = 0x4000, /* ids of flow records begin here, see layout_template_id */
    TEMPLATE_ID_OPTIONS = 0x0100  /* and of options, see options.c */
};

struct layout_field {
    uint32_t enterprise;
    uint16_t number; /* without the enterprise bit; of NetFlow v9 as it stands in the template */
    uint16_t length;
    bool flow_key;
};

struct layout {
    uint16_t template_id;
    uint16_t length; /* bytes of a record */
    uint16_t field_count;
    uint8_t ip_version;
    bool needs_routes;
    struct layout_field fields[ELEMENTS_MAX];
    struct element_source forward[ELEMENTS_MAX]; /* a step a field; of a biflow these alone */
    struct element_source reverse[ELEMENTS_MAX];
};

/* The id of the template that this configuration's records of this IP version have: bits that say its content.
 *   14 (always 1) | 13..12 revision | 11 protocol is IPFIX | 10 IPv6 | 9 biflow | 8..7 profile | 6..5 time unit | 4 routes |
 *   3..0 statistics. What a profile does not export leaves its bits 0. */
uint16_t layout_template_id(const struct capture_export_config *config, uint8_t ip_version);

/* config: checked, defaults filled in; NetFlow v9 or IPFIX. */
void layout_build(struct layout *layout, const struct capture_export_config *config, uint8_t ip_version);

/* Writes a record of layout->length bytes; `bases` by enum element_base. Returns the byte behind. */
uint8_t *layout_write(const struct layout *layout, const struct element_source *steps, const void *const bases[BASES],
                      uint8_t *at);

#endif
