/* SPDX-License-Identifier: Apache-2.0 */
#include "trust/request.h"

#include "error.h"

enum { REQUEST_SPEC = 1, SPEC_INTERFACES = 1, SPEC_FILES = 2, SPEC_FILTER = 4, UPDATE_ADD = 1 };

static const char file_device[] = "pcap:";

/* Equal, or both devices that read a file: where it lies is the agent's to say. */
static bool is_device(struct wire_bytes named, const char *device) {
    size_t prefix = sizeof(file_device) - 1;
    if (wire_equal(named, device, strlen(device)))
        return true;
    return named.length > prefix && memcmp(named.data, file_device, prefix) == 0 && strncmp(device, file_device, prefix) == 0;
}

static const char *interface_of(const struct capture_config *config, uint32_t number) {
    if (config->interfaces)
        return number < config->interface_count ? config->interfaces[number] : NULL;
    return number == 0 ? config->interface : NULL;
}

static uint32_t interfaces_of(const struct capture_config *config) {
    return config->interfaces ? config->interface_count : config->interface ? 1 : 0;
}

/* The one `spec` of a StartCaptureRequest. */
static bool take_spec(struct wire_bytes request, struct wire_bytes *spec) {
    struct wire_field field;
    enum wire_result result;
    uint32_t specs = 0;
    while ((result = wire_next(&request, &field)) == WIRE_FIELD) {
        if (field.number != REQUEST_SPEC)
            continue;
        if (field.type != WIRE_LENGTH_DELIMITED)
            return false;
        *spec = field.bytes;
        specs++;
    }
    return result == WIRE_END && specs == 1;
}

static int not_commanded(struct capture_error_info *error, const char *what) {
    return capture_fail(error, CAPTURE_ERR_REFUSED, "CAPTURE_NOT_COMMANDED",
                        "the admitted StartCapture is for other %s than this capture's", what);
}

int request_check_start(struct wire_bytes request, const struct capture_config *config, struct capture_error_info *error) {
    struct wire_bytes spec = {0}, filter = {0};
    struct wire_field field;
    enum wire_result result;
    uint32_t interfaces = 0, files = 0;
    if (!take_spec(request, &spec))
        return not_commanded(error, "contents (it is no StartCaptureRequest with one spec)");
    while ((result = wire_next(&spec, &field)) == WIRE_FIELD) {
        bool ours = field.number == SPEC_INTERFACES || field.number == SPEC_FILES || field.number == SPEC_FILTER;
        if (ours && field.type != WIRE_LENGTH_DELIMITED)
            return not_commanded(error, "contents (a field has another type)");
        if (field.number == SPEC_INTERFACES) {
            const char *interface = interface_of(config, interfaces++);
            if (!interface || !is_device(field.bytes, interface))
                return not_commanded(error, "interfaces");
        }
        files += field.number == SPEC_FILES;
        if (field.number == SPEC_FILTER)
            filter = field.bytes;
    }
    if (result != WIRE_END)
        return not_commanded(error, "contents (its spec is malformed)");
    if (interfaces != interfaces_of(config))
        return not_commanded(error, "interfaces");
    if (files != config->file_count)
        return not_commanded(error, "files");
    const char *expression = config->filter ? config->filter : "";
    return wire_equal(filter, expression, strlen(expression)) ? CAPTURE_OK : not_commanded(error, "packets (another filter)");
}

int request_find_added(struct wire_bytes request, const char *interface) {
    struct wire_field field;
    int number = 0;
    while (wire_next(&request, &field) == WIRE_FIELD) {
        if (field.number != UPDATE_ADD || field.type != WIRE_LENGTH_DELIMITED)
            continue;
        if (is_device(field.bytes, interface))
            return number;
        number++;
    }
    return -1;
}
