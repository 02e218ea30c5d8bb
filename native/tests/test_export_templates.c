/* SPDX-License-Identifier: Apache-2.0 */
/* Templates and options: an id names one content for good, and what the exporter says of itself is what it was told. */
#include <unistd.h>

#include "export/layout.h"
#include "export_config.h"
#include "export_decoder.h"

enum { MESSAGES = 64, IDS = 65536, INTERFACES = 6 };

static uint8_t out[1 << 18];
static struct capture_export_message messages[MESSAGES];
static struct decoder decoder;

static int templates_of(struct capture_export_config config) {
    capture_exporter_t *exporter = exporter_of(config);
    int count = capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES);
    CHECK(count > 0);
    memset(&decoder, 0, sizeof(decoder));
    for (int i = 0; i < count; i++) {
        CHECK(decoder_message(&decoder, out + messages[i].offset, messages[i].length));
        CHECK_EQUAL(0, messages[i].records);
        CHECK_EQUAL(0, messages[i].flows);
    }
    capture_exporter_destroy(exporter);
    return count;
}

/* Numbers of a template's fields, "8 12 ...", those of an enterprise as "29305/2". */
static const char *fields_of(uint16_t id) {
    static char text[1024];
    const struct decoded_template *template = decoder_find(&decoder, id);
    CHECK(template != NULL);
    text[0] = '\0';
    for (uint32_t i = 0; i < template->fields; i++) {
        const struct decoded_field *field = &template->field[i];
        size_t length = strlen(text);
        const char *space = i ? " " : "";
        if (field->enterprise)
            snprintf(text + length, sizeof(text) - length, "%s%u/%u:%u", space, field->enterprise, field->number, field->length);
        else
            snprintf(text + length, sizeof(text) - length, "%s%u:%u", space, field->number, field->length);
    }
    return text;
}

/* Where one of these fails, LAYOUT_REVISION (or OPTIONS_REVISION) is to be raised, and the ids here with it. */
static void the_fields_of_each_template_id_are_frozen(void) {
    templates_of((struct capture_export_config){.protocol = 3});
    CHECK_TEXT("8:4 12:4 7:2 11:2 4:1 60:1 58:2 2:8 1:8 152:8 153:8 6:2 10:4 14:4 5:1 32:2 136:1 148:8", fields_of(0x4920));
    CHECK_TEXT("27:16 28:16 7:2 11:2 4:1 60:1 58:2 2:8 1:8 152:8 153:8 6:2 10:4 14:4 5:1 139:2 136:1 148:8", fields_of(0x4d20));
    templates_of((struct capture_export_config){.protocol = 3, .profile = 1, .time_unit = 2});
    CHECK_TEXT("8:4 12:4 7:2 11:2 4:1 2:8 1:8 154:8 155:8", fields_of(0x48c0));
    CHECK_TEXT("27:16 28:16 7:2 11:2 4:1 2:8 1:8 154:8 155:8", fields_of(0x4cc0));
    templates_of((struct capture_export_config){.protocol = 3, .biflow = true});
    CHECK_TEXT("8:4 12:4 7:2 11:2 4:1 60:1 58:2 29305/2:8 2:8 29305/1:8 1:8 152:8 153:8 239:1 29305/6:2 6:2 10:4 14:4 5:1 32:2 "
               "136:1 148:8",
               fields_of(0x4b20));
    templates_of((struct capture_export_config){.protocol = 2});
    CHECK_TEXT("8:4 12:4 7:2 11:2 4:1 60:1 58:2 2:8 1:8 152:8 153:8 6:1 10:4 14:4 5:1 32:2 136:1 148:8", fields_of(0x4120));
    CHECK_TEXT("27:16 28:16 7:2 11:2 4:1 60:1 58:2 2:8 1:8 152:8 153:8 6:1 10:4 14:4 5:1 32:2 139:2 136:1 148:8",
               fields_of(0x4520));
    templates_of((struct capture_export_config){.protocol = 2, .profile = 3, .time_unit = 3, .statistics = 15});
    CHECK_TEXT(
        "8:4 12:4 7:2 11:2 4:1 60:1 58:2 2:8 1:8 156:8 157:8 6:1 10:4 14:4 5:1 32:2 136:1 148:8 243:2 245:2 56:6 80:6 52:1 "
        "53:1 95:4 351:8 57581:4 57583:4 57595:4 57596:4",
        fields_of(0x41ef));
    templates_of((struct capture_export_config){.protocol = 3, .profile = 3, .biflow = true, .statistics = 15});
    CHECK_TEXT(
        "27:16 28:16 7:2 11:2 4:1 60:1 58:2 29305/2:8 2:8 29305/1:8 1:8 152:8 153:8 239:1 29305/6:2 6:2 10:4 14:4 5:1 139:2 "
        "136:1 148:8 243:2 245:2 29305/56:6 56:6 29305/80:6 80:6 29305/52:1 52:1 29305/53:1 53:1 29305/31:4 31:4 95:4 351:8 "
        "35632/110:4 35632/109:4 35632/112:4 35632/111:4 35632/123:4 35632/124:4 6871/16886:8 6871/502:8 6871/16890:2 "
        "6871/506:2 6871/16887:8 6871/503:8",
        fields_of(0x4faf));
}

static void the_fields_of_each_options_template_id_are_frozen(void) {
    templates_of((struct capture_export_config){.protocol = 3, .sampling = 1, .sampling_interval = 10});
    CHECK_TEXT("149:4 143:4 160:8 41:8 42:8 40:8 86:8 135:8 164:8 165:8", fields_of(0x110));
    CHECK_EQUAL(2, decoder_find(&decoder, 0x110)->scopes);
    CHECK_TEXT("144:4 166:8 167:8 168:8 323:8 323:8", fields_of(0x111));
    CHECK_TEXT("302:8 304:2 305:4 306:4", fields_of(0x112));
    CHECK_TEXT("145:2 173:8", fields_of(0x114));
    CHECK_TEXT("10:4 82:32 83:64", fields_of(0x115));
    CHECK_EQUAL(1, decoder_find(&decoder, 0x115)->scopes);
    templates_of((struct capture_export_config){.protocol = 3, .sampling = 2, .sampling_interval = 10});
    CHECK_TEXT("302:8 390:2 329:8 330:8 331:8 332:8", fields_of(0x113));
    CHECK_TEXT("149:4 34:4", fields_of(0x117));
    CHECK(decoder_find(&decoder, 0x112) == NULL);
    templates_of((struct capture_export_config){.protocol = 2, .sampling = 1, .sampling_interval = 10});
    CHECK_TEXT("1:4 160:8 41:8 42:8 40:8 86:8 135:8 164:8 165:8", fields_of(0x100));
    CHECK_TEXT("1:4 166:8 167:8 168:8 323:8 323:8", fields_of(0x101));
    CHECK_TEXT("1:4 34:4 35:1", fields_of(0x106));
    CHECK_TEXT("1:4 34:4", fields_of(0x107));
    CHECK(decoder_find(&decoder, 0x102) == NULL);
    CHECK_TEXT("5:2 173:8", fields_of(0x104));
    CHECK_TEXT("2:4 82:32 83:64", fields_of(0x105));
}

static struct layout seen[IDS / 16];
static uint32_t seen_count;

static uint64_t hash_of(uint64_t hash, const struct layout *layout) {
    for (uint32_t i = 0; i < layout->field_count; i++) {
        const struct layout_field *field = &layout->fields[i];
        hash = (hash ^ field->enterprise) * 0x100000001b3;
        hash = (hash ^ field->number) * 0x100000001b3;
        hash = (hash ^ field->length) * 0x100000001b3;
    }
    return hash;
}

/* Whatever is configured: an id met before has the content that it had, and another content another id. */
static void no_id_has_two_contents_and_every_record_fits_the_smallest_message(void) {
    uint64_t hash = 0xcbf29ce484222325;
    for (uint32_t bits = 0; bits < 1 << 11; bits++) {
        struct capture_export_config config = {.protocol = 2 + (bits & 1),
                                               .profile = 1 + (bits >> 1) % 4,
                                               .time_unit = 1 + (bits >> 3) % 4,
                                               .biflow = bits >> 5 & 1,
                                               .routes = bits >> 6 & 1 ? (capture_routes_t *)&config : NULL,
                                               .statistics = bits >> 7};
        if (config.profile > 3 || config.time_unit > 3 || (config.biflow && config.protocol == 2))
            continue;
        for (uint8_t version = 4; version <= 6; version += 2) {
            struct layout layout;
            layout_build(&layout, &config, version);
            CHECK(layout.template_id >= 0x4000 && layout.template_id < 0x8000);
            CHECK(20 + 4 + layout.length + 3 <= CAPTURE_EXPORT_MESSAGE_MIN);
            for (uint32_t i = 0; i < layout.field_count; i++)
                CHECK(i < 64 || !layout.fields[i].flow_key); /* flowKeyIndicator has 64 bits */
            for (uint32_t i = 0; i < seen_count; i++)
                if (seen[i].template_id == layout.template_id)
                    CHECK_EQUAL(hash_of(1, &seen[i]), hash_of(1, &layout));
            seen[seen_count++] = layout;
            hash = hash_of(hash, &layout);
            hash = (hash ^ layout.template_id) * 0x100000001b3;
        }
    }
    /* All of them together. When this alone differs, a template that is not listed above has changed. */
    CHECK_EQUAL(0xbf0f32ee8f99a925, hash);
}

struct option_values {
    uint32_t interfaces, keys, sampling;
    bool netflow9, merged;
};

static uint64_t value_of(const struct decoded_template *template, const struct decoded_value *values, uint16_t number) {
    const struct decoded_value *value = decoded_find(template, values, 0, number);
    CHECK(value != NULL);
    return decoded_number(value->at, value->length);
}

static void check_statistics(const struct option_values *options, const struct decoded_template *template,
                             const struct decoded_value *values) {
    if ((template->id & 0xf) == 0) {
        static const uint16_t numbers[] = {41, 42, 40, 86, 135, 164, 165};
        static const uint64_t expected[] = {5, 6, 7, 1, 2, 3, 4};
        for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
            CHECK_EQUAL(expected[i], value_of(template, values, numbers[i]));
        CHECK_EQUAL(1600000000000, value_of(template, values, 160));
        CHECK_EQUAL(77, value_of(template, values, options->netflow9 ? 1 : 149));
        if (!options->netflow9)
            CHECK_EQUAL(getpid(), value_of(template, values, 143));
    } else {
        CHECK_EQUAL(8, value_of(template, values, 166));
        CHECK_EQUAL(9, value_of(template, values, 167));
        CHECK_EQUAL(10, value_of(template, values, 168));
        CHECK_EQUAL(1700000000001, decoded_number(values[4].at, 8));
        CHECK_EQUAL(1700000000002, decoded_number(values[5].at, 8));
    }
}

/* Strings have the same length in both protocols, filled up with zeros. */
static void check_interface(struct option_values *options, const struct decoded_value *values) {
    static char long_name[256], long_description[256];
    uint32_t index = (uint32_t)decoded_number(values[0].at, 4);
    memset(long_name, 'n', sizeof(long_name));
    memset(long_description, 'd', sizeof(long_description));
    CHECK_EQUAL(32, values[1].length);
    CHECK_EQUAL(64, values[2].length);
    if (index == 2) {
        CHECK(memcmp(values[1].at, "lo\0", 3) == 0);
        CHECK_EQUAL(0, values[2].at[0]);
    } else { /* cut, and before a character of two bytes that has no room */
        CHECK_EQUAL(9, index);
        CHECK(memcmp(values[1].at, long_name, 31) == 0);
        CHECK_EQUAL(0, values[1].at[31]);
        CHECK(memcmp(values[2].at, long_description, 64) == 0);
    }
    options->interfaces++;
}

static void check_option(void *context, const struct decoded_template *template, const struct decoded_value *values) {
    struct option_values *options = context;
    switch (template->id & 0xf) {
    case 0:
    case 1:
        check_statistics(options, template, values);
        break;
    case 2: /* of IPFIX alone */
        CHECK_EQUAL(1, value_of(template, values, 304));
        CHECK_EQUAL(1, value_of(template, values, 305));
        CHECK_EQUAL(999, value_of(template, values, 306));
        break;
    case 6: /* of NetFlow v9 alone */
        CHECK_EQUAL(1, value_of(template, values, 35));
        /* fallthrough */
    case 7:
        CHECK_EQUAL(1000, value_of(template, values, 34));
        options->sampling++;
        break;
    case 4: /* addresses, ports, protocol, version, VLAN, and the interface (the 13th field) where each has records of its own */
        CHECK_EQUAL(options->merged ? 0x7f : 0x107f, value_of(template, values, 173));
        CHECK(decoder_find(&decoder, (uint16_t)decoded_number(values[0].at, 2)) != NULL);
        options->keys++;
        break;
    default:
        check_interface(options, values);
    }
}

static void options_say_what_the_exporter_was_told(void) {
    const struct capture_export_statistics statistics = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1700000000001000000, 1700000000002000000};
    struct capture_export_interface interfaces[INTERFACES] = {{.index = 2, .name = "lo"}};
    for (uint32_t protocol = 2; protocol <= 3; protocol++) {
        for (uint32_t i = 1; i < INTERFACES; i++) {
            interfaces[i].index = 9;
            memset(interfaces[i].name, 'n', 255);
            memset(interfaces[i].description, 'd', 255);
            memcpy(interfaces[i].name + 31, "\xc3\xa9", 2);
        }
        struct capture_export_config config = {.protocol = protocol,
                                               .observation_domain_id = 77,
                                               .system_init_ns = 1600000000000000000,
                                               .message_max = 512,
                                               .merge_interfaces = protocol == 2,
                                               .sampling = 1,
                                               .sampling_interval = 1000};
        struct option_values options = {.netflow9 = protocol == 2, .merged = protocol == 2};
        templates_of(config);
        decoder.record = check_option;
        decoder.context = &options;
        capture_exporter_t *exporter = exporter_of(config);
        int count = capture_exporter_options(exporter, &statistics, interfaces, INTERFACES, out, sizeof(out), messages, MESSAGES);
        uint32_t records = 0;
        CHECK(count >= 2); /* 512 bytes are not enough for all */
        for (int i = 0; i < count; i++) {
            CHECK(messages[i].length <= 512);
            CHECK(decoder_message(&decoder, out + messages[i].offset, messages[i].length));
            CHECK_EQUAL(messages[i].records, decoder.records);
            CHECK_EQUAL(0, messages[i].flows);
            records += messages[i].records;
        }
        CHECK_EQUAL(2 + 2 + 2 + INTERFACES, records);
        CHECK_EQUAL(INTERFACES, options.interfaces);
        CHECK_EQUAL(2, options.keys);
        CHECK_EQUAL(protocol == 2 ? 2 : 1, options.sampling);
        CHECK_EQUAL(CAPTURE_ERR_SPACE,
                    capture_exporter_options(exporter, &statistics, interfaces, INTERFACES, out, 600, messages, MESSAGES));
        CHECK_EQUAL(CAPTURE_ERR_SPACE,
                    capture_exporter_options(exporter, &statistics, interfaces, INTERFACES, out, sizeof(out), messages, 1));
        CHECK_EQUAL(
            count, capture_exporter_options(exporter, &statistics, interfaces, INTERFACES, out, sizeof(out), messages, MESSAGES));
        capture_exporter_destroy(exporter);
    }
}

static void each_options_template_has_a_set_of_its_own(void) {
    for (uint32_t protocol = 2; protocol <= 3; protocol++) {
        CHECK_EQUAL(1, templates_of((struct capture_export_config){.protocol = protocol, .sampling = 1, .sampling_interval = 9}));
        CHECK_EQUAL(decoder.template_records - 1, decoder.sets); /* the two of records share one */
    }
}

static void templates_that_fill_several_messages_are_all_there(void) {
    struct capture_export_config config = {.protocol = 3, .profile = 3, .biflow = true, .statistics = 15, .message_max = 512};
    CHECK(templates_of(config) >= 2);
    uint32_t small = decoder.count;
    config.message_max = 0;
    CHECK_EQUAL(1, templates_of(config));
    CHECK_EQUAL(small, decoder.count);
    capture_exporter_t *exporter = exporter_of(config);
    CHECK_EQUAL(CAPTURE_ERR_SPACE, capture_exporter_templates(exporter, out, 100, messages, MESSAGES));
    CHECK_EQUAL(1, capture_exporter_templates(exporter, out, sizeof(out), messages, MESSAGES));
    capture_exporter_destroy(exporter);
}

int main(void) {
    RUN(the_fields_of_each_template_id_are_frozen);
    RUN(the_fields_of_each_options_template_id_are_frozen);
    RUN(no_id_has_two_contents_and_every_record_fits_the_smallest_message);
    RUN(options_say_what_the_exporter_was_told);
    RUN(each_options_template_has_a_set_of_its_own);
    RUN(templates_that_fill_several_messages_are_all_there);
    return 0;
}
