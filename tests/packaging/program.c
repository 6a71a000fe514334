/* The program that the launcher's tests pack: small, static, and it does what its first argument says. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void show(int argc, char **argv) {
    const char *exe = getenv("SOLO_EXE");
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length < 0 ? 0 : length] = 0;
    printf("pid %d\nparent %d\nexe %s\nself %s\n", getpid(), getppid(), exe ? exe : "", self);
    for (int i = 0; i < argc; i++) printf("argument %s\n", argv[i]);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "show";
    if (!strcmp(what, "exit")) return atoi(argv[2]);
    if (!strcmp(what, "kill")) raise(atoi(argv[2]));
    show(argc, argv);
    if (!strcmp(what, "wait")) pause();
    return 0;
}
