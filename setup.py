from setuptools import setup
setup(name='dan-mm', version='0.1.0', packages=['dan_mm'])
