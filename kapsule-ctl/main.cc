#include "kapsule-ctl/command.h"

int main(int argc, char** argv) { return kapsule::ctl::Main(argc, argv); }
