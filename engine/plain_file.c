/* plain_file: see plain_file.h. */
#include "engine/plain_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Without O_NONBLOCK a FIFO hangs the open; with it a file under a lease is refused, though the
 * holder has been asked to give it up (fcntl(2), "Leases"). */
static int open_leased(int dir, const char *path)
{
    struct stat is;
    int fd;
    if (fstatat(dir, path, &is, 0) != 0)
        return -1;
    errno = EWOULDBLOCK;
    if (!S_ISREG(is.st_mode))
        return -1;
    do
        fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 || (fstat(fd, &is) == 0 && S_ISREG(is.st_mode)))
        return fd;
    close(fd); /* another file took the name in between */
    errno = EWOULDBLOCK;
    return -1;
}

int plain_file_open(int dir, const char *path)
{
    int fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 && errno == EWOULDBLOCK ? open_leased(dir, path) : fd;
}
