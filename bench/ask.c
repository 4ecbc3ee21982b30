/* Asks a name server over UDP, so many questions at a time, and tells how many answers came and how long they took.
   Usage: ask ADDRESS PORT NAME SECONDS OUTSTANDING. Prints answers, seconds, then p50 and p99 in nanoseconds, lost. */

#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 256
/* After which a question is lost and its place is free again. */
#define LOST_NS 1000000000LL

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static size_t question(unsigned char *out, const char *name) {
  unsigned char header[12] = {0, 0, 1, 0, 0, 1};
  memcpy(out, header, 12);
  unsigned char *at = out + 12;
  while (*name) {
    size_t length = strcspn(name, ".");
    *at++ = (unsigned char)length;
    memcpy(at, name, length);
    at += length;
    name += length + (name[length] == '.');
  }
  unsigned char tail[5] = {0, 0, 1, 0, 1};
  memcpy(at, tail, 5);
  return (size_t)(at + 5 - out);
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int outstanding = atoi(argv[5]), fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
  if (outstanding < 1 || outstanding > MOST || strlen(argv[3]) > 200) return 2;
  if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) return 2;
  if (connect(fd, (struct sockaddr *)&server, sizeof server) != 0) return 1;
  unsigned char packet[512], answer[4096];
  size_t length = question(packet, argv[3]);
  size_t capacity = 1 << 24, count = 0, lost = 0;
  uint32_t *took = malloc(capacity * sizeof *took);
  long long sent[MOST] = {0};
  uint16_t id_of[MOST] = {0}, next = 0;
  long long begun = now(), end = begun + (long long)(atof(argv[4]) * 1e9);
  while (now() < end) {
    for (int i = 0; i < outstanding; i++) {
      long long at = now();
      if (sent[i] != 0 && at - sent[i] < LOST_NS) continue;
      lost += sent[i] != 0;
      /* The place stands in the lower byte, so that an answer finds it. */
      id_of[i] = (uint16_t)(next++ << 8 | i);
      packet[0] = (unsigned char)(id_of[i] >> 8);
      packet[1] = (unsigned char)id_of[i];
      sent[i] = at;
      send(fd, packet, length, 0);
    }
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    poll(&readable, 1, 100);
    ssize_t got;
    while ((got = recv(fd, answer, sizeof answer, MSG_DONTWAIT)) > 0) {
      int place = answer[1];
      uint16_t id = (uint16_t)(answer[0] << 8 | answer[1]);
      if (got < 12 || place >= outstanding || sent[place] == 0 || id != id_of[place]) continue;
      /* An answer that is good and has an address in it. */
      if ((answer[3] & 15) != 0 || (answer[6] << 8 | answer[7]) == 0) return 3;
      if (count < capacity) took[count++] = (uint32_t)(now() - sent[place]);
      sent[place] = 0;
    }
  }
  double seconds = (double)(now() - begun) / 1e9;
  if (count == 0) return 4;
  qsort(took, count, sizeof *took, compare);
  printf("%zu %.3f %u %u %zu\n", count, seconds, took[count / 2], took[count * 99 / 100], lost);
  return 0;
}
