/* SPDX-License-Identifier: Apache-2.0 */
/*
 * BPF expressions on frames. libpcap compiles, this file runs the program in user space, so that a capture gives the same result
 * from a file as from a live interface of any backend.
 *
 * An expression is compiled for a link type when the first frame of it comes (a pcapng file may hold several). Where the kernel
 * took the outer VLAN tag off, it is put back into a copy first: otherwise `vlan 5` would only ever match in files.
 */
#include "filter.h"

#include "config.h"
#include "error.h"
#include "filter_program.h"
#include "link_type.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINK_TYPES = 8, MAC_ADDRESSES = 12, VLAN_TAG = 4 };

struct compiled {
    uint16_t link_type;
    bool usable; /* false: the expression has no meaning on this link type, e.g. `ether host` on raw IP; it matches nothing */
    struct bpf_program program;
};

struct frame_filter {
    char *expression;
    uint32_t snaplen;
    uint32_t count;  /* of compiled */
    uint32_t victim; /* replaced next when all places are taken */
    struct compiled compiled[LINK_TYPES];
    uint8_t *scratch; /* snaplen + VLAN_TAG bytes, for frames whose tag is put back */
};

/* libpcap's handle for a capture file of this link type, written by this machine. A handle of pcap_open_dead would be taken for a
 * live one, where BSD loopback frames carry this platform's address family numbers; in a file they carry those of any BSD. */
static pcap_t *open_as_file(uint16_t link_type, uint32_t snaplen, char *message) {
    const struct pcap_file_header header = {.magic = 0xa1b2c3d4,
                                            .version_major = PCAP_VERSION_MAJOR,
                                            .version_minor = PCAP_VERSION_MINOR,
                                            .snaplen = snaplen,
                                            .linktype = link_type};
    uint8_t bytes[sizeof header];
    memcpy(bytes, &header, sizeof bytes);
    FILE *file = fmemopen(bytes, sizeof bytes, "r");
    if (!file)
        return NULL;
    pcap_t *handle = pcap_fopen_offline(file, message); /* reads the header, keeps the file */
    if (!handle)
        fclose(file);
    return handle;
}

int filter_program_compile(const char *expression, uint16_t link_type, uint32_t snaplen, struct bpf_program *out,
                           struct capture_error_info *error) {
    char message[PCAP_ERRBUF_SIZE] = "no memory";
    pcap_t *handle = open_as_file(link_type, snaplen, message);
    if (!handle)
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "filter", "the filter cannot be compiled: %s", message);
    int code = CAPTURE_OK;
    if (pcap_compile(handle, out, expression, 1, PCAP_NETMASK_UNKNOWN) != 0)
        code = capture_fail(error, CAPTURE_ERR_FILTER, "filter", "filter \"%.120s\" does not compile: %s", expression,
                            pcap_geterr(handle));
    pcap_close(handle);
    return code;
}

static void compile_into(struct frame_filter *filter, struct compiled *place, uint16_t link_type) {
    place->link_type = link_type;
    place->program = (struct bpf_program){0};
    place->usable = filter_program_compile(filter->expression, link_type, filter->snaplen, &place->program, NULL) == CAPTURE_OK;
}

static const struct compiled *compiled_for(struct frame_filter *filter, uint16_t link_type) {
    for (uint32_t i = 0; i < filter->count; i++)
        if (filter->compiled[i].link_type == link_type)
            return &filter->compiled[i];
    struct compiled *place;
    if (filter->count < LINK_TYPES) {
        place = &filter->compiled[filter->count++];
    } else {
        place = &filter->compiled[filter->victim++ % LINK_TYPES];
        pcap_freecode(&place->program);
    }
    compile_into(filter, place, link_type);
    return place;
}

/* The expression must have a meaning on Ethernet or, failing that, on raw IP; Ethernet's message is the one reported. */
static int compile_first(struct frame_filter *filter, struct capture_error_info *error) {
    struct compiled *place = &filter->compiled[0];
    place->link_type = LINK_ETHERNET;
    int code = filter_program_compile(filter->expression, LINK_ETHERNET, filter->snaplen, &place->program, error);
    place->usable = code == CAPTURE_OK;
    filter->count = 1;
    if (code != CAPTURE_ERR_FILTER)
        return code;
    return compiled_for(filter, LINK_RAW_IP)->usable ? CAPTURE_OK : code;
}

int frame_filter_compile(const char *expression, uint32_t snaplen, struct frame_filter **out, struct capture_error_info *error) {
    *out = NULL;
    if (!expression || expression[0] == '\0')
        return CAPTURE_OK;
    struct frame_filter *filter = calloc(1, sizeof *filter);
    if (filter) {
        filter->snaplen = snaplen ? snaplen : CONFIG_SNAPLEN_DEFAULT;
        filter->expression = strdup(expression);
        filter->scratch = malloc(filter->snaplen + (size_t)VLAN_TAG);
    }
    if (!filter || !filter->expression || !filter->scratch) {
        frame_filter_free(filter);
        return capture_fail(error, CAPTURE_ERR_NO_MEMORY, "filter", "no memory for the filter");
    }
    int code = compile_first(filter, error);
    if (code != CAPTURE_OK) {
        frame_filter_free(filter);
        return code;
    }
    *out = filter;
    return CAPTURE_OK;
}

/* The frame as it was on the wire. The tag's own protocol number is not in struct frame; libpcap's `vlan` takes 0x8100 for any.
 */
static uint32_t restore_tag(const struct frame_filter *filter, const struct frame *frame) {
    uint32_t length = frame->caplen < filter->snaplen ? frame->caplen : filter->snaplen;
    memcpy(filter->scratch, frame->data, MAC_ADDRESSES);
    filter->scratch[12] = 0x81;
    filter->scratch[13] = 0x00;
    filter->scratch[14] = (uint8_t)(frame->vlan_tci >> 8);
    filter->scratch[15] = (uint8_t)frame->vlan_tci;
    memcpy(filter->scratch + MAC_ADDRESSES + VLAN_TAG, frame->data + MAC_ADDRESSES, length - MAC_ADDRESSES);
    return length + VLAN_TAG;
}

bool frame_filter_match(struct frame_filter *filter, const struct frame *frame) {
    if (!filter || (frame->flags & FRAME_DAMAGED)) /* a damaged record is counted as malformed, whatever the filter */
        return true;
    const struct compiled *compiled = compiled_for(filter, frame->link_type);
    if (!compiled->usable)
        return false;
    if ((frame->flags & FRAME_VLAN) && frame->link_type == LINK_ETHERNET && frame->caplen >= MAC_ADDRESSES) {
        uint32_t length = restore_tag(filter, frame);
        return bpf_filter(compiled->program.bf_insns, filter->scratch, frame->wirelen + VLAN_TAG, length) != 0;
    }
    return bpf_filter(compiled->program.bf_insns, frame->data, frame->wirelen, frame->caplen) != 0;
}

void frame_filter_free(struct frame_filter *filter) {
    if (!filter)
        return;
    for (uint32_t i = 0; i < filter->count; i++)
        pcap_freecode(&filter->compiled[i].program);
    free(filter->scratch);
    free(filter->expression);
    free(filter);
}
