#!/bin/sh
# kafka.sh: the Apache Kafka broker that the tests start: its jars into .cache/kafka/VERSION through
# Maven, once. Prints the folder.
set -eu
cd "$(dirname "$0")/.."
version=4.1.0
# Its command-line tools among them, which grant rights, and something that writes its log: without a
# backend its library for that drops every line.
out=.cache/kafka/$version-logged
if [ ! -f "$out/complete" ]; then
    command -v mvn >/dev/null 2>&1 || {
        echo "kafka: want Maven and Java 17, found no mvn; tools/install.sh test installs both" >&2
        exit 69
    }
    mkdir -p .cache/kafka
    part=$(mktemp -d .cache/kafka/part.XXXXXX)
    trap 'rm -rf "$part"' EXIT
    cat >"$part/pom.xml" <<END
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tranche</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version>
  </dependency><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$version</version>
  </dependency><dependency>
    <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
  </dependency></dependencies>
</project>
END
    mvn -q -B -f "$part/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$(pwd)/$part/libs" >"$part/log" 2>&1 || {
        tail -n 20 "$part/log" >&2
        echo "kafka: Maven could not fetch kafka_2.13 $version" >&2
        exit 69
    }
    touch "$part/complete"
    rm "$part/pom.xml"
    chmod 755 "$part" # mktemp made it for one user alone
    mv "$part" "$out"
    trap - EXIT
fi
echo "$out"
