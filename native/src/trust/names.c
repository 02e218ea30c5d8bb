/* SPDX-License-Identifier: Apache-2.0 */
#include "trust/names.h"

enum {
    AGENT_ID_LENGTH = 32,
    SERVICE_MAX = 128,
    METHOD_MAX = 64,
    FLEET_MAX = 128,
    LABEL_MAX = 63,
    URI_MAX = 512,
    UUID_LENGTH = 36
};

static bool is_digit(uint8_t c) {
    return c >= '0' && c <= '9';
}

static bool is_lower(uint8_t c) {
    return c >= 'a' && c <= 'z';
}

static bool is_lower_or_digit(uint8_t c) {
    return is_lower(c) || is_digit(c);
}

static bool is_word(uint8_t c) {
    return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z') || c == '_';
}

bool name_is_agent_id(struct wire_bytes text) {
    if (text.length != AGENT_ID_LENGTH)
        return false;
    for (size_t i = 0; i < text.length; i++)
        if (!is_lower(text.data[i]) && !(text.data[i] >= '2' && text.data[i] <= '7'))
            return false;
    return true;
}

bool name_is_method(struct wire_bytes text) {
    size_t at = 1, service, method;
    if (text.length == 0 || text.data[0] != '/')
        return false;
    while (at < text.length && (is_word(text.data[at]) || text.data[at] == '.'))
        at++;
    service = at - 1;
    if (at == text.length || text.data[at] != '/')
        return false;
    size_t begin = ++at;
    while (at < text.length && is_word(text.data[at]))
        at++;
    method = at - begin;
    return at == text.length && service >= 1 && service <= SERVICE_MAX && method >= 1 && method <= METHOD_MAX;
}

static int hex_value(uint8_t c) {
    return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool name_is_uuid(struct wire_bytes text, uint8_t out[16]) {
    if (text.length != UUID_LENGTH)
        return false;
    for (size_t i = 0, digits = 0; i < UUID_LENGTH; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text.data[i] != '-')
                return false;
            continue;
        }
        int value = hex_value(text.data[i]);
        if (value < 0)
            return false;
        out[digits / 2] = (uint8_t)(digits % 2 ? out[digits / 2] | value : value << 4);
        digits++;
    }
    return true;
}

/* A DNS label in lower case; `more` is what it may hold besides, but not at its ends. */
static bool is_label(struct wire_bytes text, const char *more) {
    if (text.length < 1 || text.length > LABEL_MAX)
        return false;
    for (size_t i = 0; i < text.length; i++) {
        bool inside = i > 0 && i + 1 < text.length && text.data[i] && strchr(more, text.data[i]);
        if (!is_lower_or_digit(text.data[i]) && !inside)
            return false;
    }
    return true;
}

static bool is_fleet(struct wire_bytes text) {
    if (text.length > FLEET_MAX)
        return false;
    for (;;) {
        const uint8_t *dot = text.length ? memchr(text.data, '.', text.length) : NULL;
        size_t length = dot ? (size_t)(dot - text.data) : text.length;
        if (!is_label((struct wire_bytes){text.data, length}, "-"))
            return false;
        if (!dot)
            return true;
        text = (struct wire_bytes){dot + 1, text.length - length - 1};
    }
}

/* Takes `prefix` off the front. */
static bool take(struct wire_bytes *text, const char *prefix) {
    size_t length = strlen(prefix);
    if (text->length < length || memcmp(text->data, prefix, length) != 0)
        return false;
    *text = (struct wire_bytes){text->data + length, text->length - length};
    return true;
}

bool name_is_identity(struct wire_bytes text) {
    if (text.length > URI_MAX || !take(&text, "spiffe://"))
        return false;
    const uint8_t *slash = text.length ? memchr(text.data, '/', text.length) : NULL;
    if (!slash)
        return false;
    size_t fleet = (size_t)(slash - text.data);
    if (!is_fleet((struct wire_bytes){text.data, fleet}))
        return false;
    text = (struct wire_bytes){slash, text.length - fleet};
    if (take(&text, "/agent/"))
        return name_is_agent_id(text);
    if (take(&text, "/controller/"))
        return is_label(text, "-");
    bool operates = take(&text, "/operator/viewer/") || take(&text, "/operator/operator/") || take(&text, "/operator/admin/");
    return operates && is_label(text, "._-");
}
