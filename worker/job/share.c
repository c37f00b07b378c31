/* share: see share.h. The first 53 bits of the id's SHA-256, read as a number of [0, 1). */
#include "worker/job/share.h"

#include "worker/job/text.h"

bool share_takes(struct str custom_id, double share)
{
    uint8_t sha[32];
    uint64_t head = 0;
    if (share >= 1)
        return true;
    sha256_of(custom_id, sha);
    for (int i = 0; i < 8; i++)
        head = head << 8 | sha[i];
    return (double)(head >> 11) * 0x1p-53 < share;
}
