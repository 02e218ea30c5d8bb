/* SPDX-License-Identifier: Apache-2.0 */
/* Finding libpfring.so and its calls. */
#include "pfring_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define CALL(member) {"pfring_" #member, offsetof(struct pfring_library, member)}

static const struct {
    const char *symbol;
    size_t place;
} calls[] = {
    CALL(open),
    CALL(set_application_name),
    CALL(set_direction),
    CALL(set_socket_mode),
    CALL(set_poll_watermark),
    CALL(set_cluster),
    CALL(enable_ring),
    CALL(recv),
    CALL(stats),
    CALL(get_selectable_fd),
    CALL(poll),
    CALL(breakloop),
    CALL(close),
};

static struct {
    struct pfring_library calls;
    bool usable;
    char reason[160];
} library;

static bool find_calls(void *handle) {
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        void *call = dlsym(handle, calls[i].symbol);
        if (!call) {
            snprintf(library.reason, sizeof library.reason, "libpfring.so has no %s", calls[i].symbol);
            return false;
        }
        memcpy((char *)&library.calls + calls[i].place, &call, sizeof call);
    }
    return true;
}

static void load(void) {
    void *handle = dlopen("libpfring.so", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        snprintf(library.reason, sizeof library.reason, "%s", dlerror());
    else if (find_calls(handle))
        library.usable = true;
    else
        dlclose(handle);
}

const struct pfring_library *pfring_library_find(char *reason, size_t size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    if (!library.usable)
        snprintf(reason, size, "%s", library.reason);
    return library.usable ? &library.calls : NULL;
}
