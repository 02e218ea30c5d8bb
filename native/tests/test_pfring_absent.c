/* SPDX-License-Identifier: Apache-2.0 */
/* The backend "pfring" on a host without libpfring.so, and with one that lacks a call. */
#include "backend/backend.h"
#include "check.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

static void check_refused(const char *device, const char *backend, const char *reason) {
    struct capture_config config = {.struct_size = sizeof config, .interface = device, .backend = backend};
    struct capture_error_info error = {0};
    char name[16];
    CHECK(capture_select_backend(&config, name, &error) < 0);
    if (!strstr(error.message, reason))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, reason) != NULL);
    CHECK(strstr(error.message, "pfring: ") != NULL);
}

static void check_reason(const char *reason) {
    struct capture_backend_info backends[16];
    struct capture_config config = {.struct_size = sizeof config, .interface = "zc:eth7"};
    struct capture_error_info error = {0};
    bool listed = false;
    void *state;
    int count = capture_get_backends(NULL, backends, 16);
    for (int i = 0; i < count && i < 16; i++) {
        if (strcmp(backends[i].name, "pfring") != 0)
            continue;
        listed = true;
        CHECK(!backends[i].usable && backends[i].live);
        CHECK(strstr(backends[i].reason, reason) != NULL);
    }
    CHECK(listed);
    check_refused("zc:eth7", "pfring", reason);
    check_refused("zc:eth7", NULL, reason);
    check_refused("pcap:/proc/self/exe", "auto", reason);
    CHECK_EQUAL(CAPTURE_ERR_BACKEND, pfring_backend.open(&config, 0, 1, &state, &error));
    CHECK_TEXT("backend", error.field);
    CHECK(strstr(error.message, reason) != NULL);
}

static void a_host_without_the_library_says_so_in_the_loaders_words(void) {
    check_reason("libpfring.so: cannot open shared object file");
}

static void a_library_that_lacks_a_call_is_refused_with_its_name(void) {
    check_reason("libpfring.so has no pfring_poll");
}

int main(int count, char **arguments) {
    if (count > 1) {
        RUN(a_library_that_lacks_a_call_is_refused_with_its_name);
        return 0;
    }
    if (dlopen("libpfring.so", RTLD_NOW)) {
        printf("skipped: libpfring.so is installed here\n");
        return 77;
    }
    RUN(a_host_without_the_library_says_so_in_the_loaders_words);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setenv("LD_LIBRARY_PATH", INCOMPLETE_PFRING, 1); /* the loader reads it when a program begins */
        execl("/proc/self/exe", arguments[0], "incomplete", NULL);
        _exit(2);
    }
    int status;
    CHECK_EQUAL(child, waitpid(child, &status, 0));
    CHECK_EQUAL(0, status);
    return 0;
}
