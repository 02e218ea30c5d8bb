/* SPDX-License-Identifier: Apache-2.0 */
/* From the table of elements to layouts, once an exporter. */
#include "export/layout.h"

#include <string.h>

uint16_t layout_template_id(const struct capture_export_config *config, uint8_t ip_version) {
    bool full = config->profile == CAPTURE_EXPORT_FULL;
    return (uint16_t)(TEMPLATE_ID_RECORDS | (LAYOUT_REVISION & 3) << 12 | (config->protocol == CAPTURE_EXPORT_IPFIX) << 11 |
                      (ip_version == 6) << 10 | (config->biflow ? 1 << 9 : 0) | config->profile << 7 | config->time_unit << 5 |
                      (full && config->routes ? 1 << 4 : 0) | (full ? config->statistics : 0));
}

/* What there is, of enum element_need. */
static uint32_t have(const struct capture_export_config *config, uint8_t ip_version) {
    uint32_t needs = ip_version == 6 ? NEEDS_IPV6 : NEEDS_IPV4;
    needs |= config->protocol == CAPTURE_EXPORT_IPFIX ? NEEDS_IPFIX : NEEDS_NETFLOW9;
    needs |= config->time_unit == CAPTURE_EXPORT_MILLISECONDS   ? NEEDS_MILLISECONDS
             : config->time_unit == CAPTURE_EXPORT_MICROSECONDS ? NEEDS_MICROSECONDS
                                                                : NEEDS_NANOSECONDS;
    needs |= config->biflow ? NEEDS_BIFLOW : 0;
    needs |= config->routes ? NEEDS_ROUTES : 0;
    needs |= config->statistics & CAPTURE_STATISTICS_TCP ? NEEDS_TCP : 0;
    needs |= config->statistics & CAPTURE_STATISTICS_SIZES ? NEEDS_SIZES : 0;
    needs |= config->statistics & CAPTURE_STATISTICS_INTERVALS ? NEEDS_INTERVALS : 0;
    needs |= config->statistics & CAPTURE_STATISTICS_HEADERS ? NEEDS_HEADERS : 0;
    return needs;
}

static void add_field(struct layout *layout, bool netflow9, uint32_t enterprise, uint16_t number, uint16_t length, bool flow_key,
                      const struct element_source *forward, const struct element_source *reverse) {
    uint32_t at = layout->field_count++;
    if (netflow9 && enterprise == ENTERPRISE_NTOP) { /* version 9 has no enterprise bit */
        number = (uint16_t)(number + NTOP_NETFLOW9_BASE);
        enterprise = 0;
    }
    layout->fields[at] =
        (struct layout_field){.enterprise = enterprise, .number = number, .length = length, .flow_key = flow_key};
    layout->forward[at] = *forward;
    layout->reverse[at] = *reverse;
    layout->length = (uint16_t)(layout->length + length);
}

void layout_build(struct layout *layout, const struct capture_export_config *config, uint8_t ip_version) {
    bool netflow9 = config->protocol == CAPTURE_EXPORT_NETFLOW_V9;
    uint32_t there = have(config, ip_version);
    memset(layout, 0, sizeof(*layout));
    layout->template_id = layout_template_id(config, ip_version);
    layout->ip_version = ip_version;
    layout->needs_routes = config->profile == CAPTURE_EXPORT_FULL && config->routes;
    for (uint32_t i = 0; i < export_element_count; i++) {
        const struct export_element *element = &export_elements[i];
        if (config->profile < element->profile || (element->needs & ~there))
            continue;
        /* The reverse field first: who passes over enterprise numbers, as nfdump 1.7 does, keeps the last value, the forward one.
         */
        if (config->biflow && element->reverse_enterprise)
            add_field(layout, netflow9, element->reverse_enterprise, element->reverse_number, element->length, false,
                      &element->reverse, &element->reverse);
        add_field(layout, netflow9, element->enterprise, element->number, element->length, element->flow_key, &element->forward,
                  &element->reverse);
    }
}
