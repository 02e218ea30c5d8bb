/* SPDX-License-Identifier: Apache-2.0 */
/* Templates of flow records: RFC 3954, 5.2 and RFC 7011, 3.4.1. */
#include "export/ipfix.h"
#include "export/sets.h"

enum { SET_TEMPLATES_NETFLOW9 = 0, SET_TEMPLATES_IPFIX = 2, TEMPLATE_HEADER = 4, ENTERPRISE_BIT = 0x8000 };

static uint32_t template_length(const struct layout *layout) {
    uint32_t length = TEMPLATE_HEADER;
    for (uint32_t i = 0; i < layout->field_count; i++)
        length += layout->fields[i].enterprise ? 8 : 4;
    return length;
}

static bool put_template(struct ipfix_writer *writer, const struct layout *layout) {
    uint16_t set_id = writer->encoder->netflow9 ? SET_TEMPLATES_NETFLOW9 : SET_TEMPLATES_IPFIX;
    uint8_t *at = ipfix_writer_record(writer, set_id, template_length(layout));
    if (!at)
        return false;
    at = export_put16(at, layout->template_id);
    at = export_put16(at, layout->field_count);
    for (uint32_t i = 0; i < layout->field_count; i++) {
        const struct layout_field *field = &layout->fields[i];
        at = export_put16(at, (uint16_t)(field->number | (field->enterprise ? ENTERPRISE_BIT : 0)));
        at = export_put16(at, field->length);
        if (field->enterprise)
            at = export_put32(at, field->enterprise);
    }
    return true;
}

int ipfix_put_templates(void *context, struct export_message *message, struct export_block *block) {
    struct ipfix_writer writer = {.encoder = context, .message = message, .block = block};
    for (uint32_t i = 0; i < sizeof(writer.encoder->layouts) / sizeof(writer.encoder->layouts[0]); i++)
        if (!put_template(&writer, &writer.encoder->layouts[i]))
            return CAPTURE_ERR_SPACE;
    int code = ipfix_put_options_templates(&writer);
    return code == CAPTURE_OK ? ipfix_writer_end(&writer) : code;
}
