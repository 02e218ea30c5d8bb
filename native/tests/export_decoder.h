/* SPDX-License-Identifier: Apache-2.0 */
/* A strict collector of NetFlow v9 and IPFIX for tests: follows templates, takes nothing from the encoder but its bytes. */
#ifndef JARVIS_TEST_EXPORT_DECODER_H
#define JARVIS_TEST_EXPORT_DECODER_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { DECODER_TEMPLATES = 32, DECODER_FIELDS = 96 };

struct decoded_field {
    uint32_t enterprise;
    uint16_t number, length;
};

struct decoded_template {
    uint16_t id, fields, scopes;
    struct decoded_field field[DECODER_FIELDS];
};

struct decoded_value {
    const uint8_t *at;
    uint32_t length;
};

struct decoder {
    struct decoded_template templates[DECODER_TEMPLATES];
    uint32_t count;
    void (*record)(void *context, const struct decoded_template *template, const struct decoded_value *values);
    void *context;
    uint32_t records, template_records, sets; /* of the last message */
    uint64_t records_total;
};

static inline uint64_t decoded_number(const uint8_t *at, uint32_t length) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < length; i++)
        value = value << 8 | at[i];
    return value;
}

static inline struct decoded_template *decoder_find(struct decoder *decoder, uint16_t id) {
    for (uint32_t i = 0; i < decoder->count; i++)
        if (decoder->templates[i].id == id)
            return &decoder->templates[i];
    return NULL;
}

/* A template that is there already must be the same. */
static inline bool decoder_learn(struct decoder *decoder, const struct decoded_template *template) {
    struct decoded_template *known = decoder_find(decoder, template->id);
    if (known)
        return memcmp(known, template, sizeof(*known)) == 0;
    if (template->id < 256 || template->fields == 0 || decoder->count == DECODER_TEMPLATES)
        return false;
    decoder->templates[decoder->count++] = *template;
    return true;
}

/* One template record; returns its length, 0: unsound. */
static inline uint32_t decoder_template(struct decoder *decoder, bool netflow9, bool options, const uint8_t *at, uint32_t left) {
    struct decoded_template template;
    uint32_t length = options ? 6 : 4;
    memset(&template, 0, sizeof(template));
    if (left < length)
        return 0;
    template.id = (uint16_t)decoded_number(at, 2);
    uint32_t first = (uint32_t)decoded_number(at + 2, 2), second = options ? (uint32_t)decoded_number(at + 4, 2) : 0;
    template.fields = (uint16_t)first;
    template.scopes = (uint16_t)second;
    if (options && netflow9) {
        if (first % 4 || second % 4)
            return 0;
        template.fields = (uint16_t)((first + second) / 4);
        template.scopes = (uint16_t)(first / 4);
    }
    if (template.fields > DECODER_FIELDS || (options && (template.scopes == 0 || template.scopes > template.fields)))
        return 0;
    for (uint32_t i = 0; i < template.fields; i++) {
        if (left < length + 4)
            return 0;
        struct decoded_field *field = &template.field[i];
        field->number = (uint16_t)decoded_number(at + length, 2);
        field->length = (uint16_t)decoded_number(at + length + 2, 2);
        length += 4;
        if (!netflow9 && field->number & 0x8000) {
            if (left < length + 4)
                return 0;
            field->number &= 0x7fff;
            field->enterprise = (uint32_t)decoded_number(at + length, 4);
            length += 4;
        }
    }
    decoder->template_records++;
    return decoder_learn(decoder, &template) ? length : 0;
}

/* One data record; returns its length, 0: it does not fit. */
static inline uint32_t decoder_record(struct decoder *decoder, const struct decoded_template *template, const uint8_t *at,
                                      uint32_t left) {
    struct decoded_value values[DECODER_FIELDS];
    uint32_t length = 0;
    for (uint32_t i = 0; i < template->fields; i++) {
        uint32_t size = template->field[i].length;
        if (size == 65535) {
            if (left < length + 1)
                return 0;
            size = at[length++];
            if (size == 255) {
                if (left < length + 2)
                    return 0;
                size = (uint32_t)decoded_number(at + length, 2);
                length += 2;
            }
        }
        if (left < length + size)
            return 0;
        values[i] = (struct decoded_value){at + length, size};
        length += size;
    }
    decoder->records++;
    decoder->records_total++;
    if (decoder->record)
        decoder->record(decoder->context, template, values);
    return length;
}

static inline bool decoder_set(struct decoder *decoder, bool netflow9, uint16_t id, const uint8_t *at, uint32_t left) {
    bool templates = id == (netflow9 ? 0 : 2), options = id == (netflow9 ? 1 : 3);
    const struct decoded_template *template = decoder_find(decoder, id);
    if (!templates && !options && !template)
        return false;
    uint32_t before = decoder->records + decoder->template_records;
    while (left) {
        uint32_t padding = 0;
        while (padding < left && at[padding] == 0)
            padding++;
        if (netflow9 && left < 4 && padding == left)
            break;
        uint32_t taken =
            template ? decoder_record(decoder, template, at, left) : decoder_template(decoder, netflow9, options, at, left);
        if (!taken)
            return false;
        at += taken;
        left -= taken;
    }
    decoder->sets++;
    return decoder->records + decoder->template_records > before; /* a set is never empty */
}

/* Whether a message is sound to the last byte, with every data set's template known. */
static inline bool decoder_message(struct decoder *decoder, const uint8_t *at, uint32_t length) {
    bool netflow9 = decoded_number(at, 2) == 9;
    uint32_t header = netflow9 ? 20 : 16, offset = header;
    decoder->records = decoder->template_records = decoder->sets = 0;
    if (length <= header || (!netflow9 && (decoded_number(at, 2) != 10 || decoded_number(at + 2, 2) != length)))
        return false;
    while (offset < length) {
        if (length - offset < 4)
            return false;
        uint32_t set = (uint32_t)decoded_number(at + offset + 2, 2);
        if (set < 4 || set > length - offset || (netflow9 && set % 4))
            return false;
        if (!decoder_set(decoder, netflow9, (uint16_t)decoded_number(at + offset, 2), at + offset + 4, set - 4))
            return false;
        offset += set;
    }
    return !netflow9 || decoded_number(at + 2, 2) == decoder->records + decoder->template_records;
}

/* The value of an element in a record; NULL: it has none. */
static inline const struct decoded_value *decoded_find(const struct decoded_template *template,
                                                       const struct decoded_value *values, uint32_t enterprise, uint16_t number) {
    for (uint32_t i = 0; i < template->fields; i++)
        if (template->field[i].enterprise == enterprise && template->field[i].number == number)
            return &values[i];
    return NULL;
}

#endif
