/* A test program: reads configurations from stdin (u32 length in native order, bytes), and prints for each what
 * read_location finds: "1", the run and the data directory, with tabs between, or "0" where Python has to read it. The configuration is copied to an
 * allocation of its exact size, so that the address sanitizer sees every read beyond its end. */
#include "../../cni/launcher/launcher.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        struct location location;
        char *config = malloc(size ? size : 1);
        if (!config || fread(config, 1, size, stdin) != size)
            return 1;
        if (read_location(size ? config : NULL, size, &location))
            printf("1\t%s\t%s\n", location.run_dir, location.data_dir);
        else
            printf("0\n");
        free(config);
    }
    return 0;
}
