/* postgres_certificate: see postgres_connection.h. libpq says of a server's certificate that it was
 * refused, not why: "expired" and "unknown authority" read the same. */
#include <arpa/inet.h>
#include <limits.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "worker/sink/postgres_connection.h"

enum { SECONDS = 5 };

/* Asks the server to speak TLS, as libpq does: a length and a code, and one byte back. */
static bool wants_tls(BIO *bio)
{
    uint32_t request[2] = {htonl(8), htonl(80877103)};
    char answer = 0;
    struct timeval limit = {.tv_sec = SECONDS};
    int fd = (int)BIO_get_fd(bio, NULL);
    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
           setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0 &&
           BIO_write(bio, request, sizeof request) == sizeof request &&
           BIO_read(bio, &answer, 1) == 1 && answer == 'S';
}

/* Takes the bio. The handshake itself refuses nothing, so that the reason can be asked for. */
static long verdict(SSL_CTX *context, BIO *bio)
{
    SSL *ssl = SSL_new(context);
    long found = X509_V_OK;
    if (!ssl) {
        BIO_free_all(bio);
        return found;
    }
    SSL_set_bio(ssl, bio, bio);
    if (SSL_connect(ssl) == 1)
        found = SSL_get_verify_result(ssl);
    SSL_free(ssl);
    return found;
}

static bool authorities(SSL_CTX *context, const char *root)
{
    char home[PATH_MAX];
    const char *folder = getenv("HOME");
    if (root && strcmp(root, "system") == 0)
        return SSL_CTX_set_default_verify_paths(context) == 1;
    snprintf(home, sizeof home, "%s/.postgresql/root.crt", folder ? folder : "");
    return SSL_CTX_load_verify_locations(context, root && *root ? root : home, NULL) == 1;
}

const char *postgres_certificate_fault(const char *host, const char *port, const char *root)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    BIO *bio = context && authorities(context, root) ? BIO_new_connect(host) : NULL;
    long found = X509_V_OK;
    if (bio) {
        BIO_set_conn_port(bio, port);
        if (BIO_do_connect(bio) == 1 && wants_tls(bio))
            found = verdict(context, bio);
        else
            BIO_free_all(bio);
    }
    SSL_CTX_free(context);
    return found == X509_V_OK ? NULL : X509_verify_cert_error_string(found);
}
